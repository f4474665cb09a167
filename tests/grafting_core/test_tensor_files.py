"""Files of tensors are those of safetensors behind a checksum, written and read one tensor at a time."""

import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from grafting_core.storage.checksums import verify_checksum, with_checksum
from grafting_core.storage.storage import Storage
from grafting_core.storage.tensor_files import DTYPES, read_tensors, write_tensors


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = {
        name: torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for name, dtype in DTYPES.items()
    }
    return {
        **values,
        "a scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "turned": torch.randn(4, 6, generator=generator).T,
        "bytes": torch.arange(7, dtype=torch.uint8),
    }


@pytest.mark.parametrize("where", ["local", "memory"])
def test_they_are_read_as_they_were_written_and_by_safetensors_too(tmp_path: Path, where: str) -> None:
    storage = Storage(str(tmp_path) if where == "local" else f"memory://{tmp_path.name}")
    write_tensors(storage, "a/file", tensors())
    ours, theirs = read_tensors(storage, "a/file"), load(verify_checksum(storage.read_bytes("a/file")))
    assert set(ours) == set(theirs) == set(tensors())
    for name, value in tensors().items():
        for found in (ours[name], theirs[name]):
            assert found.dtype == value.dtype
            assert torch.equal(found, value)


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    written = {name: value.contiguous() for name, value in tensors().items()}
    storage.write_bytes("file", with_checksum(save(written, metadata={"format": "pt"})))
    found = read_tensors(storage, "file")
    assert {name: found[name].tolist() for name in found} == {n: t.tolist() for n, t in written.items()}


def test_what_is_read_may_be_changed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_tensors(storage, "file", {"a": torch.ones(3)})
    found = read_tensors(storage, "file")
    found["a"].add_(1)
    assert found["a"].tolist() == [1, 1, 1]


def test_an_open_file_is_read_though_it_was_deleted(tmp_path: Path) -> None:
    """As an older checkpoint may be while a run resumes from it."""
    storage = Storage(str(tmp_path))
    write_tensors(storage, "file", {"a": torch.ones(3)})
    found = read_tensors(storage, "file")
    storage.delete("file")
    assert found["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        with_checksum(b"")[:-1],
        with_checksum(b"no tensors at all"),
        with_checksum((10**9).to_bytes(8, "little") + b"{}"),
        with_checksum((8).to_bytes(8, "little") + b"[1]     "),
        with_checksum(save({"a": torch.ones(9)})[:-4]),
        with_checksum(save({"a": torch.ones(9)}))[:-1] + b"x",
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("file", content)
    with pytest.raises(ValueError, match=r"its content does not match|it holds|Expecting"):
        read_tensors(storage, "file")
    with pytest.raises(FileNotFoundError):
        read_tensors(storage, "nothing")


def test_no_second_copy_of_all_tensors_is_made(tmp_path: Path) -> None:
    """What Python itself allocates is less than two of twenty tensors of a megabyte."""
    storage, written = Storage(str(tmp_path)), {f"t{index}": torch.randn(2**18) for index in range(20)}
    tracemalloc.start()
    try:
        write_tensors(storage, "file", written)
        for name, value in read_tensors(storage, "file").items():
            assert torch.equal(value, written[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20

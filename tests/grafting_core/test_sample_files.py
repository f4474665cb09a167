"""Samples as the ADM evaluator reads them: streamed, in an order that no score can profit from."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from grafting_core.evaluation.sample_files import Bytes, ImagePart, as_rgb, manifest, row_order, write_npz
from grafting_core.specs.plans import EvaluationProtocol

BALANCED = EvaluationProtocol(samples=200, labels="balanced")
UNIFORM = EvaluationProtocol(samples=200)


def images(protocol: EvaluationProtocol) -> Bytes:
    """Each sample's index in its pixels."""
    whole = np.zeros((protocol.samples, 4, 5, 3), np.uint8)
    whole += np.arange(protocol.samples, dtype=np.uint8)[:, None, None, None]
    return whole


def parts(whole: Bytes, size: int = 30) -> list[ImagePart]:
    return [ImagePart(first, whole[first : first + size]) for first in range(0, len(whole), size)]


def read_as_adm_does(path: Path) -> Bytes:
    """guided-diffusion's `open_npz_array`: the member's header, then rows straight from the zip."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        assert np.lib.format.read_magic(member) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        assert not fortran
        assert not dtype.hasobject
        rows = [np.frombuffer(member.read(int(np.prod(shape[1:]))), dtype) for _ in range(shape[0])]
        return np.stack(rows).reshape(shape)


def test_rows_are_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", BALANCED, parts(images(BALANCED)))
    found = read_as_adm_does(tmp_path / "a.npz")
    rows = list(csv.DictReader(manifest(BALANCED, 10).splitlines()))
    assert (found.shape, found.dtype) == ((200, 4, 5, 3), np.uint8)
    assert found[:, 0, 0, 0].tolist() == [int(row["index"]) for row in rows]
    assert [int(row["label"]) for row in rows] == [int(row["index"]) % 10 for row in rows]
    assert len({row["seed"] for row in rows}) == 200


@pytest.mark.parametrize("protocol", [BALANCED, UNIFORM], ids=["balanced", "uniform"])
def test_labels_are_neither_sorted_nor_dealt_in_turn(protocol: EvaluationProtocol) -> None:
    labels = [int(row["label"]) for row in csv.DictReader(manifest(protocol, 10).splitlines())]
    assert labels != sorted(labels)
    assert any(len(set(labels[at : at + 10])) < 10 for at in range(0, 200, 10))


def test_the_file_is_the_same_whatever_the_parts(tmp_path: Path) -> None:
    for name, size in (("a", 30), ("b", 64)):
        write_npz(tmp_path / f"{name}.npz", BALANCED, reversed(parts(images(BALANCED), size)))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_missing_and_repeated_samples_are_named(tmp_path: Path) -> None:
    some = parts(images(UNIFORM))
    with pytest.raises(ValueError, match="sample 30 occurs 0 times"):
        write_npz(tmp_path / "a.npz", UNIFORM, [some[0], *some[2:]])
    with pytest.raises(ValueError, match="sample 0 occurs 2 times"):
        write_npz(tmp_path / "a.npz", UNIFORM, [*some, some[0]])


def test_gray_is_repeated_and_colours_are_kept() -> None:
    gray, colour = np.full((2, 4, 5), 7, np.uint8), np.zeros((2, 4, 5, 3), np.uint8)
    colour[..., 1] = 9
    assert as_rgb(gray).shape == (2, 4, 5, 3)
    assert (as_rgb(gray) == 7).all()
    assert as_rgb(colour)[0, 0, 0].tolist() == [0, 9, 0]
    with pytest.raises(ValueError, match="2 channels"):
        as_rgb(colour[..., :2])


def test_the_order_of_rows_is_every_sample_once() -> None:
    assert sorted(row_order(BALANCED)) == list(range(200))
    assert row_order(UNIFORM).tolist() == list(range(200))

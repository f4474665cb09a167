"""Files of torch.save: classes of others are never imported, and damage is found by the file's checksums."""

import argparse
import collections
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from grafting_core import import_checkpoint
from grafting_core.backbones.checkpoint_file import read_checkpoint, weight_records
from grafting_core.backbones.torch_files import Placeholder, Record, records_of, unpickled
from grafting_core.backbones.weight_files import open_weights
from tests.support.checkpoints import HYENA, RunsCode, save_checkpoint, small_state

MADE = list[object]()
"""Objects of a trainer's classes that were made or filled."""


class Settings:
    """As OmegaConf's containers are pickled: made without arguments, then given a state."""

    def __init__(self, content: Any = None) -> None:
        self.content = content

    def __getstate__(self) -> dict[str, Any]:
        return {"content": self.content, "cache": collections.defaultdict(dict, {"a": {"b": 1}})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        MADE.append(state)


class Logged:
    """An object that is made again by a call of its class."""

    def __init__(self, *values: object) -> None:
        MADE.append(values)

    def __reduce__(self) -> tuple[Any, ...]:
        return Logged, (1, "two")


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package of settings."""
    module = ModuleType("trainer_settings")
    for cls in (Settings, Logged):
        monkeypatch.setattr(cls, "__module__", module.__name__)
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def training_file(path: Path, **more: Any) -> Path:
    state = small_state(HYENA)
    doubled = {name: 2 * tensor for name, tensor in state.items()}
    document = {"model": doubled, "ema": state, "opt": {"state": {0: {"exp_avg": torch.ones(9999)}}}}
    return save_checkpoint(path, document | {"train_steps": 7} | more)


def flipped(path: Path, record: Record) -> None:
    with path.open("r+b") as opened:
        opened.seek(record.offset + record.size // 2)
        [byte] = opened.read(1)
        opened.seek(-1, 1)
        opened.write(bytes([byte ^ 8]))


def test_settings_of_any_package_are_no_reason_to_refuse_a_checkpoint(
    tmp_path: Path, trainer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested = Settings([Settings("x"), Path("results"), {"lr": Logged()}])
    more = {"args": argparse.Namespace(lr=1e-4), "cfg": nested, "log": Logged(), "rng": {1, 2}}
    path = training_file(tmp_path / "model.pt", **more)
    monkeypatch.delitem(sys.modules, "trainer_settings")
    MADE.clear()
    file = read_checkpoint(path)
    assert MADE == []
    assert (file.kind, dict(file.figures)) == ("training", {"train_steps": 7.0})
    expected = small_state(HYENA)
    assert file.state.keys() == expected.keys()
    assert all(torch.equal(file.state[name], tensor) for name, tensor in expected.items())
    document = unpickled(path, placeholders=True)
    assert [type(document[name]).__name__ for name in ("cfg", "log", "args")] == [
        "Settings",
        "Logged",
        "Namespace",
    ]
    assert all(isinstance(document[name], Placeholder) for name in ("cfg", "log", "args"))
    assert vars(document["cfg"]) == {}


def test_a_placeholder_among_the_weights_is_refused_by_name(tmp_path: Path, trainer: ModuleType) -> None:
    path = save_checkpoint(tmp_path / "model.pt", {"ema": {**small_state(), "final": Settings()}})
    with pytest.raises(ValueError, match=r"model.pt: final is no tensor but a Settings"):
        read_checkpoint(path)


@pytest.mark.parametrize("place", ["args", "ema"])
def test_what_would_run_something_is_refused_wherever_it_is(tmp_path: Path, place: str) -> None:
    code = RunsCode(tmp_path / "made")
    more = {"args": code} if place == "args" else {"ema": {**small_state(), "x": code}}
    path = training_file(tmp_path / "model.pt", **more)
    with pytest.raises(ValueError, match=r"model.pt is not a whole file .*: it names posix\.system$"):
        read_checkpoint(path)
    assert not (tmp_path / "made").exists()


class RunsEval:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1 + 1",)


def test_a_builtin_that_runs_something_is_refused(tmp_path: Path) -> None:
    path = training_file(tmp_path / "model.pt", args=RunsEval())
    with pytest.raises(ValueError, match=r"it names eval$"):
        read_checkpoint(path)


def test_a_flipped_bit_of_a_weight_is_found_and_its_record_named(tmp_path: Path) -> None:
    path = training_file(tmp_path / "model.pt")
    [*_, record] = weight_records(path)
    flipped(path, record)
    with pytest.raises(ValueError, match=rf"model.pt is damaged: its record {record.name} does not match"):
        import_checkpoint(path)


def test_a_flipped_bit_of_the_pickle_is_found(tmp_path: Path) -> None:
    path = training_file(tmp_path / "model.pt")
    [pickled] = [record for record in records_of(path) if record.name.endswith("data.pkl")]
    flipped(path, pickled)
    with pytest.raises(ValueError, match=r"model.pt is damaged: its record model/data.pkl does not match"):
        import_checkpoint(path)


def test_tensors_that_are_not_needed_are_not_read(tmp_path: Path) -> None:
    """Optimiser and current weights may be damaged: they are not used."""
    path = training_file(tmp_path / "model.pt")
    needed = weight_records(path)
    others = [each for each in records_of(path) if each.is_storage and each not in needed]
    assert sum(each.size for each in needed) == sum(each.nbytes for each in small_state(HYENA).values())
    assert len(others) == len(needed) + 1
    for record in others:
        flipped(path, record)
    state = read_checkpoint(path).state
    assert all(torch.equal(state[name], tensor) for name, tensor in small_state(HYENA).items())


def test_a_flipped_bit_of_a_bin_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "diffusion_pytorch_model.bin"
    weights: dict[str, Tensor] = {"a": torch.arange(9.0), "b": torch.arange(4.0)}
    torch.save(weights, path)
    with open_weights(tmp_path) as opened:
        assert torch.equal(opened.read("b"), weights["b"])
    flipped(path, [record for record in records_of(path) if record.is_storage][-1])
    with (
        pytest.raises(ValueError, match=r"\.bin is damaged: its record \S+/data/1 does not match"),
        open_weights(tmp_path),
    ):
        pass

"""Checkpoints are verified; a damaged one costs only the steps since the one before."""

from pathlib import Path

import pytest
import torch

from grafting_core.storage import Storage
from tests.builders import experiment, same
from workers.checkpoints import StoredCheckpoints
from workers.contract import RunTicket

FOLDER = "runs/r1/checkpoints/key"


def checkpoints(folder: Path, attempt: int = 1, seconds: float = 30.0) -> StoredCheckpoints:
    ticket = RunTicket(
        run_id="r1", attempt=attempt, work=experiment(), storage=str(folder), checkpoint_seconds=seconds
    )
    return StoredCheckpoints(Storage(str(folder)), ticket, "key")


def state(value: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3,), float(value)), "optimiser/0.step": torch.tensor(value)}


def test_the_newest_of_any_attempt_is_taken_up(tmp_path: Path) -> None:
    checkpoints(tmp_path, attempt=1).save(10, state(10))
    checkpoints(tmp_path, attempt=2).save(20, state(20))
    found = checkpoints(tmp_path, attempt=3).latest()
    assert found is not None
    assert found[0] == 20
    assert same(found[1], state(20))


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    for step in (1, 2, 3):
        kept.save(step, state(step))
    assert Storage(str(tmp_path)).names(FOLDER) == [
        "00000002-a0001.safetensors",
        "00000003-a0001.safetensors",
    ]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_one_is_set_aside_for_the_one_before(tmp_path: Path, damage: str) -> None:
    kept = checkpoints(tmp_path)
    for step in (1, 2):
        kept.save(step, state(step))
    path = tmp_path / FOLDER / "00000002-a0001.safetensors"
    whole = path.read_bytes()
    damaged = {"cut": whole[:-5], "flip": whole[:-1] + bytes([whole[-1] ^ 1]), "empty": b""}[damage]
    path.write_bytes(damaged)
    found = kept.latest()
    assert found is not None
    assert found[0] == 1
    assert path.with_name(path.name + ".damaged").exists()


def test_none_is_due_before_its_time(tmp_path: Path) -> None:
    assert not checkpoints(tmp_path, seconds=1000).due()
    assert checkpoints(tmp_path, seconds=1e-9).due()

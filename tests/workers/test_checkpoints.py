"""Checkpoints are verified; a damaged one costs only the steps since the one before."""

from pathlib import Path
from typing import Any

import pytest
import torch

from grafting_core.storage.storage import Storage
from tests.support.builders import experiment, same
from workers.checkpoints import StoredCheckpoints
from workers.contract import RunTicket, best_in

FOLDER = "runs/r1/checkpoints/key"


def checkpoints(folder: Path, attempt: int = 1, **asked: Any) -> StoredCheckpoints:
    ticket = RunTicket(run_id="r1", attempt=attempt, work=experiment(), storage=str(folder), **asked)
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


def left(folder: Path) -> list[int]:
    names = Storage(str(folder)).names(FOLDER)
    return [int(name.split("-")[0]) for name in names if name.endswith(".safetensors")]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_last_few_are_kept(tmp_path: Path, count: int) -> None:
    kept = checkpoints(tmp_path, keep_checkpoints=count)
    for step in (1, 2, 3, 4):
        kept.save(step, state(step), 1.0 / step)
    assert left(tmp_path) == [2, 3, 4][-count:]


def test_the_best_is_kept_beside_the_last_and_replaced_by_a_better_one_alone(tmp_path: Path) -> None:
    seen = []
    for step, loss in enumerate((0.9, 0.5, float("nan"), 0.7, 0.5, 0.4, 0.8), 1):
        # Each attempt finds what the one before noted.
        kept = checkpoints(tmp_path, attempt=step, keep_checkpoints=1, keep_best=True)
        kept.save(step, state(step), loss)
        seen.append(left(tmp_path))
    assert seen == [[1], [2], [2, 3], [2, 4], [2, 5], [6], [6, 7]]
    found = kept.latest()
    assert found is not None
    assert found[0] == 7
    note = best_in(Storage(str(tmp_path)), FOLDER)
    assert note is not None
    assert (note.name, note.loss) == ("00000006-a0006.safetensors", 0.4)


def test_one_that_vanishes_while_it_is_looked_for_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = checkpoints(tmp_path)
    for step in (1, 2):
        kept.save(step, state(step))
    names = Storage(str(tmp_path)).names(FOLDER)
    (tmp_path / FOLDER / names[1]).unlink()
    monkeypatch.setattr(StoredCheckpoints, "_names", lambda self: names)
    found = kept.latest()
    assert found is not None
    assert found[0] == 1


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
    assert not checkpoints(tmp_path, checkpoint_seconds=1000).due()
    assert checkpoints(tmp_path, checkpoint_seconds=1e-9).due()

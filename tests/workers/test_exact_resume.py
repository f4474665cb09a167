"""A run that crashes at random points ends bit-identical to one that did not."""

import random
from pathlib import Path

import pytest

from grafting_core.backbones.base import Backbone
from grafting_core.specs.experiment import evaluation_key, finetune_key
from grafting_core.storage.artifacts import read_card
from grafting_core.storage.storage import Storage
from tests.support.builders import experiment
from tests.support.stages import context
from workers.group import run_stages
from workers.observer import StageObserver

pytestmark = pytest.mark.large


class Crash(Exception):
    """The process is gone: no checkpoint is saved on the way out."""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_crashes_at_random_steps_leave_the_same_bits(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    spec, chance = experiment(), random.Random(seed)
    run_stages(context(tmp_path / "whole", backbone, spec))
    progress = StageObserver.progress

    def crashing(self: StageObserver, step: int, total: int, values: dict[str, float]) -> None:
        if chance.random() < 0.12:
            raise Crash
        progress(self, step, total, values)

    monkeypatch.setattr(StageObserver, "progress", crashing)
    # Some steps are saved and some are not, as time would have it.
    for kind in ("workers.checkpoints.StoredCheckpoints", "workers.checkpoints.ScionProgress"):
        monkeypatch.setattr(f"{kind}.due", lambda self: chance.random() < 0.5)
    crashes = 0
    for attempt in range(1, 60):
        try:
            run_stages(context(tmp_path / "broken", backbone, spec, attempt=attempt))
            break
        except Crash:
            crashes += 1
    assert crashes > 0
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    model = f"models/{finetune_key(spec)}/model.safetensors"
    assert (broken / model).read_bytes() == (whole / model).read_bytes()
    assert figures(broken, evaluation_key(spec)) == figures(whole, evaluation_key(spec))


def figures(folder: Path, key: str) -> dict[str, float]:
    """What was measured, without what the clock says."""
    metrics = read_card(Storage(str(folder)), f"evaluations/{key}")["metrics"]
    return {name: value for name, value in metrics.items() if name.startswith(("fid", "denoising"))}

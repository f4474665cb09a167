"""Samples are the same bytes on one worker, on several, and after any number of deaths and retries."""

import hashlib
import multiprocessing
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from grafting_core.backbones.base import Backbone
from grafting_core.diffusion.sampling import sample_images
from grafting_core.specs.experiment import evaluation_key
from grafting_core.training.finetune import Shard
from tests.support.builders import experiment
from tests.support.stages import context
from workers.contract import StageReport
from workers.stages import evaluate
from workers.stages.context import Group
from workers.stages.sample_export import SampleExport

pytestmark = pytest.mark.large

SETTINGS = {"samples": 64, "sampler": "ddpm", "sampling_steps": 2, "micro_batch": 4, "labels": "uniform"}
SPEC = experiment(edits=[], keep_samples=True, evaluate=SETTINGS)
KEY = evaluation_key(SPEC)
FORK = multiprocessing.get_context("fork")
"""Workers start from this process, where torch is loaded and computes on one thread."""


@dataclass(frozen=True)
class Mortal(SampleExport):
    """Kills its process in the middle of the first chunk from this index on."""

    death_at: int | None

    def add(self, first: int, images: npt.NDArray[np.uint8]) -> None:
        super().add(first, images)
        if self.death_at is not None and first >= self.death_at:
            os.kill(os.getpid(), signal.SIGKILL)


def work(folder: Path, backbone: Backbone, attempt: int, share: Shard, death_at: int | None) -> None:
    """One worker's chunks."""
    made = context(folder, backbone, SPEC, attempt=attempt)
    made.group = Group(share)
    made.events = made.events if share.rank == 0 else None
    kept = Mortal(made.storage, KEY, SPEC.evaluate, True, death_at)
    evaluate.sample(made, KEY, backbone.transformer, kept)


def attempt(folder: Path, backbone: Backbone, number: int, world: int, death_at: int | None) -> None:
    """Everyone's chunks, or the deaths of all."""
    workers = [
        FORK.Process(target=work, args=(folder, backbone, number, Shard(rank, world), death_at))
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    expected = 0 if death_at is None else -signal.SIGKILL
    assert [worker.exitcode for worker in workers] == [expected] * world


def finish(folder: Path, backbone: Backbone) -> StageReport:
    """The stage of a worker that finds all chunks there."""
    return evaluate.run(context(folder, backbone, SPEC, attempt=9))


def made_in(folder: Path) -> Mapping[str, str]:
    """Digest of every file of the evaluation."""
    root = folder / f"evaluations/{KEY}"
    files = [path for path in root.rglob("*") if path.is_file() and ".tmp-" not in path.name]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Path:
    """The evaluation of one worker that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(folder, backbone).metrics["fid64/fashion-cnn"] > 0
    return folder


@pytest.mark.parametrize(
    "attempts", [[(2, 16), (2, 40), (2, None)], [(3, 24), (1, 32), (3, None)]], ids=["2 workers", "3, 1, 3"]
)
def test_any_workers_with_deaths_between_make_the_same_files(
    tmp_path: Path, backbone: Backbone, whole: Path, attempts: list[tuple[int, int | None]]
) -> None:
    for known in ("references", "costs"):
        shutil.copytree(whole / known, tmp_path / known)
    for number, (world, death_at) in enumerate(attempts, start=1):
        attempt(tmp_path, backbone, number, world, death_at)
    finish(tmp_path, backbone)
    assert made_in(tmp_path) == made_in(whole)


def test_the_kept_images_are_the_samples_themselves(whole: Path, backbone: Backbone) -> None:
    file = whole / f"evaluations/{KEY}/samples.npz"
    with np.load(file, allow_pickle=False) as arrays:
        kept = arrays["arr_0"]
    images = sample_images(backbone, backbone.transformer, SPEC.evaluate, range(64)).numpy()
    assert (kept == images[..., None]).all()
    assert not list(file.parent.rglob("images/*"))


def test_keeping_is_a_wish_that_changes_no_key_and_may_come_later(
    tmp_path: Path, backbone: Backbone, whole: Path
) -> None:
    assert evaluation_key(experiment(edits=[], evaluate=SETTINGS)) == KEY
    shutil.copytree(whole, tmp_path / "lab")
    for file in (tmp_path / "lab").rglob("samples.[ncj]*"):
        file.unlink()
    report = finish(tmp_path / "lab", backbone)
    assert report.stop_cause == "completed"
    assert set(report.artifacts) >= {"samples.png", "samples.npz", "samples.csv"}
    assert made_in(tmp_path / "lab") == made_in(whole)
    assert finish(tmp_path / "lab", backbone).stop_cause == "reused"

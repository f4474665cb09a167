"""Samples are the same bytes on one worker, on several, and after any number of deaths and retries."""

import hashlib
import multiprocessing
import time
from collections.abc import Mapping
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from grafting_core.backbones.loader import Backbone
from grafting_core.evaluation import network_of, own_reference
from grafting_core.finetuning import Share
from grafting_core.published import read_card
from grafting_core.sampling import sample_images
from grafting_core.spec.experiment import ExperimentSpec, evaluation_key
from grafting_core.storage import Storage
from tests.builders import experiment
from tests.workers.test_stages import context
from workers.contract import StageReport
from workers.stages import evaluate
from workers.stages.context import Group

SETTINGS = {"samples": 64, "sampler": "ddpm", "sampling_steps": 2, "micro_batch": 4, "labels": "uniform"}
SPEC = experiment(edits=[], keep_samples=True, evaluate=SETTINGS)
FORK = multiprocessing.get_context("fork")
"""Workers start from this process, where torch is loaded and computes on one thread."""


def work(folder: Path, backbone: Backbone, attempt: int, share: Share, together: Barrier) -> StageReport:
    """One worker's stage."""
    made = context(folder, backbone, SPEC, attempt=attempt)
    made.group = Group(share, barrier=lambda: together.wait(60) and None)
    made.events = made.events if share.rank == 0 else None
    return evaluate.run(made)


def attempt(folder: Path, backbone: Backbone, number: int, world: int, death_at: int | None = None) -> None:
    """Everyone's stage; once `death_at` chunks are there, all are killed, the last worker first."""
    together = FORK.Barrier(world)
    workers = [
        FORK.Process(target=work, args=(folder, backbone, number, Share(rank, world), together))
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    while death_at is not None and len(list(folder.rglob("chunks/*.npz"))) < death_at:
        time.sleep(0.001)
    for worker in reversed(workers) if death_at is not None else ():
        worker.kill()
    for worker in workers:
        worker.join()
        assert death_at is not None or worker.exitcode == 0


def made_in(folder: Path, spec: ExperimentSpec = SPEC) -> Mapping[str, str]:
    """Digest of every file of the evaluation."""
    root = folder / f"evaluations/{evaluation_key(spec)}"
    files = [path for path in root.rglob("*") if path.is_file() and ".tmp-" not in path.name]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Path:
    """The evaluation of one worker that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    context(folder, backbone, SPEC).latents(evaluate.LOSS_IMAGES)  # once, here, for all who start from here
    own_reference(backbone, network_of(backbone, SPEC.evaluate))
    attempt(folder, backbone, 1, world=1)
    return folder


@pytest.mark.parametrize("worlds", [(2, 2, 2), (3, 1, 3)], ids=str)
def test_any_workers_with_deaths_between_make_the_same_files(
    tmp_path: Path, backbone: Backbone, whole: Path, worlds: tuple[int, ...]
) -> None:
    for number, world in enumerate(worlds[:-1], start=1):
        attempt(tmp_path, backbone, number, world, death_at=2 * number)
    assert "samples.npz" not in made_in(tmp_path)
    attempt(tmp_path, backbone, len(worlds), worlds[-1])
    assert made_in(tmp_path) == made_in(whole)
    assert figures_in(tmp_path) == figures_in(whole)


def figures_in(folder: Path) -> Mapping[str, float]:
    """What the leaderboard ranks, as it is stored."""
    metrics = read_card(Storage(str(folder)), f"evaluations/{evaluation_key(SPEC)}")["metrics"]
    assert metrics["fid64/fashion-cnn"] > 0
    return metrics


def test_the_kept_images_are_the_samples_themselves(whole: Path, backbone: Backbone) -> None:
    file = whole / f"evaluations/{evaluation_key(SPEC)}/samples.npz"
    with np.load(file, allow_pickle=False) as arrays:
        kept = arrays["arr_0"]
    images = sample_images(backbone, backbone.transformer, SPEC.evaluate, range(64)).numpy()
    assert (kept == images[..., None]).all()
    assert not list(file.parent.rglob("images/*"))


def test_keeping_is_a_wish_that_changes_no_key_and_may_come_later(
    tmp_path: Path, backbone: Backbone, whole: Path
) -> None:
    plain = experiment(edits=[], evaluate=SETTINGS)
    assert evaluation_key(plain) == evaluation_key(SPEC)
    evaluate.run(context(tmp_path, backbone, plain))
    before = made_in(tmp_path)
    report = evaluate.run(context(tmp_path, backbone, SPEC, attempt=2))
    assert report.stop_cause == "completed"
    assert set(report.artifacts) == {"samples.png", "samples.npz", "samples.csv", "report.json"}
    assert made_in(tmp_path) == made_in(whole)
    assert before.items() <= made_in(tmp_path).items()
    assert evaluate.run(context(tmp_path, backbone, SPEC, attempt=3)).stop_cause == "reused"

"""Pairs of blocks side by side go through a whole study: distilled, screened, finetuned, evaluated."""

from collections.abc import Callable

import pytest

from grafting_core.backbones.base import Backbone
from grafting_core.specs.design import ParallelPair
from grafting_core.specs.scions import ScionSpec
from grafting_core.specs.studies.space import MERGED
from grafting_core.storage.bank import Bank
from service.domain.studies import spec_of_study, trials_of
from service.domain.study_queries import study_detail
from service.studies.specs import SCORE
from tests.support.study_harness import StudyHarness
from tests.support.study_runs import InProcessCluster


@pytest.mark.large
def test_a_study_with_pairs_fills_screens_and_finishes_them(
    new_sqlite_study: Callable[..., StudyHarness], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grafting_core.evaluation.cost.SECONDS", 0.0)
    lab = new_sqlite_study(
        "lab",
        space={"parallel_pairs": "optional"},
        limits={"params": "<= 1.5x"},
        distill={"steps": 2, "batch_size": 8, "held_out": 8, "images": 64},
        finetune={"steps": 2, "batch_size": 8, "images": 64},
        evaluate={"samples": 20, "sampling_steps": 2, "micro_batch": 10},
        objectives=[{"minimize": "fid20"}],
        screening={"trials": 5, "rungs": ["loss_gap"], "loss_draws": 64},
        promote=2,
    )
    lab.cluster = InProcessCluster(lab.database, lab.storage, backbone)
    study = lab.run()
    assert (study.state, study.message) == ("DONE", None)
    spec, bank = spec_of_study(study), Bank(lab.storage)
    assert len(spec.space.pairs) == 4
    for first in (0, 2, 4, 6):
        part = ParallelPair(first=first)
        card = bank.card(ScionSpec(backbone=spec.backbone, part=part, plan=spec.distill).key)
        assert card is not None
        assert card.scores[SCORE] == study.scores[f"{part}: {MERGED}"] > 0
    with lab.database.reading() as session:
        trials, detail = trials_of(session, lab.id), study_detail(session, study)
    merged = [trial for trial in trials if MERGED in trial.assignment.values()]
    assert merged
    assert all("loss_gap" in trial.screened for trial in merged)
    finished = [trial for trial in merged if trial.final]
    assert finished
    assert all(trial.final[detail.quality] > 0 for trial in finished)
    for trial in finished:
        assert spec.space.design(spec.space.chosen(trial.assignment)).pairs

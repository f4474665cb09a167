"""A screening is told what became of each number, and knows which are still to be had."""

from pathlib import Path

from grafting_core.specs.rungs import FidRung, LossGapRung
from grafting_core.specs.screening import ScreeningSpec
from grafting_core.storage.storage import Storage
from tests.support.builders import experiment
from tests.support.training import StopAfter
from workers.stages.screen import FINISHED, TRIES, RungSearcher, RungState

NEVER = StopAfter(10**9)


def climb(folder: Path) -> RungSearcher:
    designs = tuple(experiment(layers=[block]) for block in (1, 3))
    spec = ScreeningSpec(
        name="screening",
        backbone=designs[0].design.backbone,
        designs=tuple(each.design for each in designs),
        costs=((), ()),
        rungs=(LossGapRung(), FidRung(samples=20, feature_network="fashion-cnn")),
        reduction=2,
        distill=designs[0].distill,
        evaluate=designs[0].evaluate,
    )
    return RungSearcher(RungState(spec, Storage(str(folder))), NEVER)


def test_a_hybrid_whose_worker_died_is_judged_again(tmp_path: Path) -> None:
    asked = climb(tmp_path)
    assert asked.suggest("a") == {"hybrid": 0, "rung": 0}
    assert asked.suggest("b") == {"hybrid": 1, "rung": 0}
    asked.on_trial_complete("a", error=True)
    assert asked.suggest("c") == {"hybrid": 0, "rung": 0}
    asked.on_trial_complete("b", {"value": 2.0})
    asked.on_trial_complete("c", {"value": 1.0})
    assert asked.suggest("d") == {"hybrid": 0, "rung": 1}


def test_a_hybrid_that_cannot_be_judged_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    asked = climb(tmp_path)
    for attempt in range(TRIES):
        assert asked.suggest(f"bad {attempt}") == {"hybrid": 0, "rung": 0}
        asked.on_trial_complete(f"bad {attempt}", error=True)
    assert asked.suggest("good") == {"hybrid": 1, "rung": 0}
    asked.on_trial_complete("good", {"value": 2.0})
    assert asked.suggest("higher") == {"hybrid": 1, "rung": 1}
    asked.on_trial_complete("higher", {"value": 3.0})
    assert asked.suggest("end") == FINISHED

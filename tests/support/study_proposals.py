"""Proposals of a study without a lab: a formula evaluates every design as soon as it is proposed.

`python -m tests.support.study_proposals FOLDER KIND...` prints which of torch, diffusers and ray its
process has loaded after all these samplers have proposed.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from grafting_core.specs.studies.space import Item
from grafting_core.specs.studies.study import StudySpec
from service.db.study_tables import StudyRow, TrialRow
from service.domain.study_feasibility import parse_feasible_study
from service.studies.trial_round import propose

ROUNDS, TRIALS, FEW = 2, 40, 22
"""Numbers of designs: few give a Gaussian process eleven to fit, many make a generation of NSGA-II."""
HARMS = {"keep": 0.0, "hyena_x": 1.0, "window_attention(half_width=2)": 0.4, "mlp(ratio=3)": 0.7}
SPACE = {
    "attention": ["keep", "hyena_x", {"kind": "window_attention", "half_width": 2}],
    "mlp": ["keep", {"kind": "mlp", "ratio": 3}],
}


def document(kind: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Make a study of 1,679,616 designs, few of which meet its limits."""
    return {
        "name": "rounds",
        "backbone": "testbed/dit-fashion",
        "space": SPACE,
        "objectives": [{"minimize": "loss_gap"}],
        "limits": {"flops": "<= 0.85x"},
        "sampler": {"kind": kind, "seed": seed},
        "screening": {"trials": TRIALS},
        "promote": ROUNDS,
        "rounds": ROUNDS,
        "baselines": [],
        **changes,
    }


def harm(chosen: tuple[Item, ...]) -> float:
    """Return the simulated damage: larger in deep blocks, and for neighbours that are both replaced."""
    harms = [HARMS[item.label] * (1 + item.sites[0].block / 4) for item in chosen]
    return sum(harms) + sum(one * other for one, other in pairwise(harms)) / 8


def rounds(folder: Path, given: dict[str, Any]) -> tuple[StudySpec, list[TrialRow]]:
    """Return all trials of both rounds; Optuna's database stays in the folder."""
    spec = parse_feasible_study(given)
    study = StudyRow(id="study", spec=spec.model_dump(mode="json"), scores={})
    trials: list[TrialRow] = []
    for study.round in range(1, ROUNDS + 1):
        for trial in propose(f"sqlite:///{folder / 'optuna.db'}", study, list(trials)):
            trial.screened = {"loss_gap": harm(spec.space.chosen(trial.assignment))}
            trials.append(trial)
    return spec, trials


if __name__ == "__main__":
    for name in sys.argv[2:]:
        (Path(sys.argv[1]) / name).mkdir()
        few = FEW if name == "gp" else FEW // 2  # the others load all their modules without fitting
        rounds(Path(sys.argv[1]) / name, document(name, screening={"trials": few}))
    print(sorted({"torch", "diffusers", "ray"} & set(sys.modules)))

"""Integer program of studies: compared with exhaustive search on 729 designs, timed on 56 sites of 8
kinds.
"""

import itertools
import random
import statistics
import time
from typing import Any

from grafting_core.specs.studies.integer_program import Proposer
from grafting_core.specs.studies.space import Space
from grafting_core.specs.studies.study import StudySpec
from service.domain.study_feasibility import parse_feasible_study


def milp_figures() -> dict[str, object]:
    """Compare with exhaustive search on 729 designs at three limits, and time 56 sites of 8 kinds."""
    small = {"attention": ["keep", "hyena_x", {"kind": "window_attention", "half_width": 2}]}
    small |= {"groups": {"attention": [[block] for block in range(6)]}}
    equal = [_equals_exhaustive(small, share, seed) for share in (1.0, 0.97, 0.95) for seed in range(5)]
    seconds = [_large(seed) for seed in range(5)]
    return {
        "equal": f"{sum(equal)} of {len(equal)}",
        "seconds": statistics.median(seconds),
        "worst": max(seconds),
    }


def _opened(space: dict[str, Any], backbone: str, share: float) -> StudySpec:
    limits = {"flops": f"<= {share}x"}
    goals = [{"minimize": "loss_gap"}]
    return parse_feasible_study(
        {"name": "milp", "backbone": backbone, "space": space, "objectives": goals, "limits": limits}
    )


def _scores(space: Space, seed: int) -> dict[str, float]:
    draw = random.Random(seed)
    return {item.key: draw.random() for item in space.items if not item.is_keep}


def _equals_exhaustive(space: dict[str, Any], share: float, seed: int) -> bool:
    spec = _opened(space, "testbed/dit-fashion", share)
    proposer = Proposer(spec.space, _scores(spec.space, seed), spec.limits)
    mixes = itertools.product(*(variable.items for variable in spec.space.variables))
    least = min(proposer.score(mix) for mix in mixes if proposer.meets(mix))
    return abs(proposer.score(proposer.best()) - least) < 1e-9


def _large(seed: int) -> float:
    attention: list[Any] = ["keep", "hyena_x", "hyena_y", "hyena_se", "mamba2", "linear_attention"]
    attention += [{"kind": "window_attention", "half_width": width} for width in (2, 4)]
    mlps: list[Any] = ["keep", *({"kind": "mlp", "ratio": ratio} for ratio in (1, 2, 3, 3.5, 5, 6, 8))]
    spec = _opened({"attention": attention, "mlp": mlps}, "dit-xl-2-256", 0.8)
    proposer = Proposer(spec.space, _scores(spec.space, seed), spec.limits)
    began = time.perf_counter()
    proposer.best()
    return time.perf_counter() - began

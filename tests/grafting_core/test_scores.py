"""Scores say what a swap does to the teacher's prediction, on the same noise for all."""

from collections.abc import Sequence

import pytest
import torch

from grafting_core.analysis.sensitivity import Intervention, Undoable, replace_one, restore_one
from grafting_core.backbones.base import Backbone
from grafting_core.data.latents import Latents
from grafting_core.specs.design import ReplaceOperator
from grafting_core.surgery.operate import operate
from tests.support.builders import design_of, replacement, same

SAME = replacement("mha", 2, init="inherit")
HALF = replacement("mlp", 4, init="inherit", ratio=2.0)
GONE = replacement("identity", 5)


def place(backbone: Backbone, *edits: ReplaceOperator) -> Intervention:
    return lambda: operate(backbone, design_of(backbone, *edits))


def test_replacing_by_the_same_function_costs_nothing(backbone: Backbone, latents: Latents) -> None:
    places = {"same": place(backbone, SAME), "half": place(backbone, HALF), "gone": place(backbone, GONE)}
    scores = replace_one(backbone, places, latents, draws=16)
    assert scores["same"]["replace_one/noise"] < 1e-8
    assert scores["half"]["replace_one/noise"] > 1e-6
    bins = [scores["gone"][f"replace_one/variance/t{first}-{first + 249}"] for first in (0, 250, 500, 750)]
    assert sum(bins) / 4 == pytest.approx(scores["gone"]["replace_one/variance"])


def test_a_score_does_not_depend_on_the_company(backbone: Backbone, latents: Latents) -> None:
    before = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    alone = replace_one(backbone, {"gone": place(backbone, GONE)}, latents, draws=16)
    both = {"half": place(backbone, HALF), "gone": place(backbone, GONE)}
    assert replace_one(backbone, both, latents, draws=16)["gone"] == alone["gone"]
    assert same(backbone.transformer.state_dict(), before)


def test_the_squared_difference_is_that_of_the_outputs(backbone: Backbone, latents: Latents) -> None:
    """Of the identity in place of attention, seen by hand."""
    attention = backbone.get_operator(GONE.site)
    batch = latents.batch("scores", 0, 0, 8)
    steps = (torch.arange(8) * 1000 + 500) // 8
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        cumulative = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[steps]
        signal, sigma = (
            part.float().view(-1, 1, 1, 1) for part in (cumulative.sqrt(), (1 - cumulative).sqrt())
        )
        noisy = signal * batch.clean + sigma * batch.noise
        for undone in (False, True):
            undo = None if undone else operate(backbone, design_of(backbone, GONE))
            seen.append(backbone.transformer(noisy, timestep=steps, **batch.conditions.arguments).sample)
            if undo is not None:
                undo.undo()
    assert backbone.get_operator(GONE.site) is attention
    scores = replace_one(backbone, {"gone": place(backbone, GONE)}, latents, draws=8)
    expected = (seen[0] - seen[1])[:, :4].square().mean()
    assert scores["gone"]["replace_one/noise"] == pytest.approx(float(expected), rel=1e-4)


def test_restoring_what_hurts_gains_most(backbone: Backbone, latents: Latents) -> None:
    edits = {"same": SAME, "gone": GONE}

    def parts(left_out: Sequence[str]) -> Undoable:
        kept = [edit for key, edit in edits.items() if key not in left_out]
        return operate(backbone, design_of(backbone, *kept))

    scores = restore_one(backbone, dict.fromkeys(edits, parts), latents, draws=16)
    assert scores["gone"]["restore_one/noise"] > 0
    assert abs(scores["same"]["restore_one/noise"]) < 1e-6

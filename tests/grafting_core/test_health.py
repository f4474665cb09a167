"""The health report passes every kind of ours and catches what is wrong."""

import pytest
import torch
from torch import Tensor, nn

from grafting_core import health
from grafting_core.health import check_operator
from grafting_core.spec.operators import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_healthy(kind: str) -> None:
    findings = check_operator(KINDS[kind](kind=kind))
    assert not [finding for finding in findings if finding.ok is False]


@pytest.mark.parametrize(
    ("kind", "reach", "causal"),
    [
        ("hyena_x", "-3 to +0", True),
        ("window_attention", "-4 to +4", False),
        ("mlp", "+0 to +0", True),
        ("hyena_se", "-6 to +0", True),
    ],
)
def test_reach_and_causality_are_told(kind: str, reach: str, causal: bool) -> None:
    seen = {finding.probe: finding.seen for finding in check_operator(KINDS[kind](kind=kind))}
    assert reach in seen["receptive field"]
    assert seen["causality"].startswith("causal") is causal


class Broken(nn.Module):
    """Has a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(32, 32), nn.Parameter(torch.ones(3))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        out: Tensor = self.used(hidden_BTD)
        return out


def test_a_wrong_formula_and_an_idle_parameter_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "build", lambda spec, dims: Broken())
    module = Broken()
    assert health._gradients(module).seen == "none reaches unused"
    assert health._parameters(KINDS["mlp"](kind="mlp"), module).ok is False

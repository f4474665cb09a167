"""The health report passes every kind of ours and catches what is wrong."""

import pytest
import torch
from torch import Tensor, nn

from grafting_core.operators.attention import BandAttention, SoftmaxAttention
from grafting_core.operators.hyena import GatedConvolution
from grafting_core.specs.operators import KINDS
from grafting_core.surgery import check_operator as probes
from grafting_core.surgery.check_operator import CheckResult, check_operator


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


@pytest.mark.parametrize(
    ("kind", "planted", "probe", "seen"),
    [
        ("window_attention", BandAttention(32, 4, half_width=5), "receptive field", "-5 to +5"),
        ("window_attention", BandAttention(32, 4, half_width=3), "receptive field", "not -4 to +4"),
        ("hyena_x", GatedConvolution(32, 4, ahead=1), "causality", "sees later tokens"),
        ("mlp_hyena_x", SoftmaxAttention(32, 4), "receptive field", "not +0 to +0"),
        ("hyena_y", GatedConvolution(32, 4, featuriser=True, inner=True), "parameters", "built"),
    ],
    ids=[
        "window too wide",
        "window too narrow",
        "leak of the future",
        "tokens mixed in an MLP",
        "other size",
    ],
)
def test_what_is_planted_wrong_is_found(
    monkeypatch: pytest.MonkeyPatch, kind: str, planted: nn.Module, probe: str, seen: str
) -> None:
    monkeypatch.setattr(probes, "build_operator", lambda spec, dims: planted)
    monkeypatch.setattr(probes, "_flops", lambda spec: CheckResult("FLOPs", None, "of other dims"))
    found = {finding.probe: finding for finding in check_operator(KINDS[kind](kind=kind))}
    assert found[probe].ok is False
    assert seen in found[probe].seen


class Broken(nn.Module):
    """Has a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(32, 32), nn.Parameter(torch.ones(3))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        out: Tensor = self.used(hidden_BTD)
        return out


def test_a_wrong_formula_and_an_idle_parameter_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "build_operator", lambda spec, dims: Broken())
    module = Broken()
    assert probes._gradients(module).seen == "none reaches unused"
    assert probes._parameters(KINDS["mlp"](kind="mlp"), module).ok is False

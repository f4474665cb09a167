"""Check an operator of any kind: reach, gradients, formulas, precision (`graft check-operator`).

`python -m grafting_core.surgery.check_operator KIND` prints one JSON document; exit code 1 if a probe
has failed.
"""

import copy
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.models.attention import FeedForward as DiffusersFeedForward
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from grafting_core.backbones.dit import projections
from grafting_core.operators.table import build_operator
from grafting_core.specs.backbone import DIT_XL_2_256
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators import KINDS, OperatorBase
from grafting_core.surgery.weight_inheritance import inherit

SMALL = BlockDims(width=32, num_heads=4, mlp_ratio=4.0, grid=(7, 7))
BF16_ERROR = 0.05
FLOP_TOLERANCE = 0.01


@dataclass(frozen=True)
class CheckResult:
    """Result of one probe; `ok` is None if there is nothing to check."""

    probe: str
    ok: bool | None
    seen: str


def check_operator(spec: OperatorBase) -> list[CheckResult]:
    """All probes of one kind, at small dims except for the FLOP count, with a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_operator(spec, SMALL)
        into = dependency_matrix(module)
        return [
            _self_graft(spec),
            _reach(spec, into),
            _causality(spec, into),
            _gradients(module),
            _parameters(spec, module),
            _flops(spec),
            _precision(module),
            _other_lengths(module),
        ]


def _hidden(tokens: int = SMALL.num_tokens, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, tokens, SMALL.width, dtype=dtype)


def _self_graft(spec: OperatorBase) -> CheckResult:
    """Check that it computes the same function with the weights of the operator that it replaces."""
    originals: dict[str, Callable[[], nn.Module]] = {
        "mha": lambda: Attention(SMALL.width, heads=4, dim_head=8, bias=True),
        "mlp": lambda: DiffusersFeedForward(SMALL.width, activation_fn="gelu-approximate"),
    }
    if spec.kind not in originals:
        return CheckResult("self-graft", None, "does not apply: not an operator of a DiT")
    original, operator, hidden = originals[spec.kind](), build_operator(spec, SMALL), _hidden()
    inherit(projections(original), operator)
    equal = torch.equal(operator(hidden), original(hidden))
    return CheckResult("self-graft", equal, "bit-identical" if equal else "differs from the original")


def dependency_matrix(module: nn.Module) -> Tensor:
    """Output tokens [T] that each input token [T] changes, for any weights: bool [input, output]."""
    wide = copy.deepcopy(module).double()
    for parameter in wide.parameters():
        nn.init.normal_(parameter, std=0.3)  # filters may start as the identity
    before = _hidden(dtype=torch.float64)[:1]
    with torch.no_grad():
        rows = [_changed_by(wide, before, token) for token in range(before.shape[1])]
    return torch.stack(rows)


def _changed_by(module: nn.Module, before: Tensor, token: int) -> Tensor:
    after = before.clone()
    after[0, token] += 1
    changed: Tensor = (module(before) != module(after)).any(dim=2)[0]
    return changed


def _reach(spec: OperatorBase, into: Tensor) -> CheckResult:
    """The receptive field must be the one that the spec states, if it states one."""
    offsets = (into.nonzero()[:, 0] - into.nonzero()[:, 1]).tolist()
    first, last, promised = min(offsets, default=0), max(offsets, default=0), spec.reach(SMALL)
    seen = f"a token sees {first:+d} to {last:+d} in raster order"
    if promised is None:
        return CheckResult("receptive field", None, f"{seen}; the spec states none")
    within = -first <= promised[0] and last <= promised[1]
    kept = within and (spec.fades or (-first, last) == promised)
    return CheckResult(
        "receptive field", kept, seen if kept else f"{seen}, not {-promised[0]:+d} to {promised[1]:+d}"
    )


def _causality(spec: OperatorBase, into: Tensor) -> CheckResult:
    """A spec that states no reach ahead must not depend on later tokens."""
    future, promised = bool(into.tril(-1).any()), spec.reach(SMALL)
    seen = "sees later tokens" if future else "causal: sees no later token"
    if promised is None or promised[1]:
        return CheckResult("causality", None, seen)
    return CheckResult("causality", not future, seen)


def _gradients(module: nn.Module) -> CheckResult:
    hidden = _hidden().requires_grad_()
    module.zero_grad()
    module(hidden).square().sum().backward()
    # A constant added to all keys does not change a softmax.
    silent = [
        name
        for name, parameter in module.named_parameters()
        if (parameter.grad is None or not parameter.grad.any()) and name != "k.bias"
    ]
    finite = all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    flows = hidden.grad is not None and bool(hidden.grad.isfinite().all()) and bool(hidden.grad.any())
    seen = f"none reaches {', '.join(silent)}" if silent else "reach every parameter and the input"
    return CheckResult("gradients", not silent and finite and flows, seen)


def _parameters(spec: OperatorBase, module: nn.Module) -> CheckResult:
    built, formula = sum(p.numel() for p in module.parameters()), spec.num_params(SMALL)
    return CheckResult("parameters", built == formula, f"formula {formula:,}, built {built:,}")


def _flops(spec: OperatorBase) -> CheckResult:
    """Formula for totals and budgets, compared with the FLOP counter on the built module."""
    dims = DIT_XL_2_256.dims
    with torch.device("meta"):
        module, hidden = build_operator(spec, dims), torch.empty(1, dims.num_tokens, dims.width)
    with FlopCounterMode(display=False) as counter:
        module(hidden)
    counted, formula = counter.get_total_flops(), spec.computed_flops(dims)
    if not counted:
        return CheckResult("FLOPs", None, f"formula {formula:,}; no matrix product to compare with")
    close = abs(counted - formula) <= FLOP_TOLERANCE * formula
    return CheckResult("FLOPs", close, f"formula {formula:,}, matrix products {counted:,}")


def _precision(module: nn.Module) -> CheckResult:
    hidden = _hidden()
    with torch.no_grad():
        exact = module(hidden)
        with torch.autocast("cpu", torch.bfloat16):
            error = (module(hidden).float() - exact).abs().max() / exact.abs().max()
    return CheckResult(
        "bf16", bool(error < BF16_ERROR), f"within {error:.1e} of fp32, relative to the maximum"
    )


def _other_lengths(module: nn.Module) -> CheckResult:
    try:
        with torch.no_grad():
            kept = module(_hidden(60)).shape == (2, 60, SMALL.width)
    except ValueError as refusal:
        return CheckResult("other token counts", True, f"refused: {refusal}")
    return CheckResult("other token counts", kept, "accepted" if kept else "change the shape")


def report(kind: str, fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Results of all probes as plain data."""
    return (asdict(finding) for finding in check_operator(KINDS[kind](kind=kind, **fields)))


def main() -> int:
    """Check the kind in the first argument, with fields as JSON in the second; returns the exit code."""
    kind, fields = sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    findings = list(report(kind, fields))
    print(json.dumps(findings))
    return 1 if any(finding["ok"] is False for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())

"""FLOPs of every operator: by formula, by `torch.utils.flop_counter`, and by the paper's arithmetic.

`python -m benchmarks.flops [--width 1152]` prints a line per kind and token count. If formula and counter
differ, it exits with code 1.
"""

import argparse
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.operators import dims_of
from grafting_core.operators.table import build_operator
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators import KINDS
from grafting_core.specs.operators.base import OperatorBase

HEAD = (
    "| tokens | kind | computed, MFLOP | counted, MFLOP | paper's, MFLOP | computed, of the original |\n"
    f"{'|---' * 6}|"
)
TOKENS = (49, 256, 1024)


def main() -> int:
    """Print the table; return 1 if a formula differs from the counter by more than 1 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    given = parser.parse_args()
    print(HEAD)
    wrong = [kind for tokens in given.tokens for kind in KINDS if not _line(kind, _dims(given.width, tokens))]
    return 1 if wrong else 0


def _dims(width: int, tokens: int) -> BlockDims:
    """Return the dims; 49 tokens are the testbed's grid of 7 x 7."""
    if tokens == 49:
        return dims_of(width, tokens).model_copy(update={"grid": (7, 7)})
    return dims_of(width, tokens)


def _line(kind: str, dims: BlockDims) -> bool:
    spec = KINDS[kind](kind=kind)
    original = KINDS["mha" if "attention" in spec.slots else "mlp"]
    whole = original(kind=original.model_fields["kind"].default).computed_flops(dims)
    computed, seen, paper = spec.computed_flops(dims), counted(spec, dims), spec.flops(dims).total
    figures = " | ".join(f"{flops / 1e6:.2f}" for flops in (computed, seen, paper))
    print(f"| {dims.num_tokens} | {kind} | {figures} | {computed / whole:.3f} |")
    return abs(computed - seen) <= 0.01 * seen


def counted(spec: OperatorBase, dims: BlockDims) -> int:
    """Return the counter's FLOPs of one forward of the built module on one sample."""
    with torch.device("meta"):
        module, hidden = build_operator(spec, dims), torch.empty(1, dims.num_tokens, dims.width)
    with FlopCounterMode(display=False) as counter:
        module(hidden)
    return int(counter.get_total_flops())


if __name__ == "__main__":
    sys.exit(main())

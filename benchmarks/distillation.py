"""Stage 1 in one pass compared with distilling the same operators one by one, in one run.

`python -m benchmarks.distillation [--rounds 3]` prints two tables, for the testbed and for a DiT-B/2 with
random weights. Gain: wall-clock time of a step of all separate runs together over that of a step of the
one pass; R(n, k) = sum(T + 3 f) / (T + sum(3 f)), the gain that FLOPs allow (T of the model's forward, f
of each operator's); teacher forwards per step; FLOP/s as a share of a large matrix product's in the same
run. Memory: the additional peak of a process that trains 40 candidates over one that trains 4, and the
size of the weights, gradients and optimiser state of 36 candidates. Separate runs also draw new noise
every step.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.dit import silence_label_dropout
from grafting_core.backbones.registry import load_backbone
from grafting_core.data.latents import EncodedImages, Latents
from grafting_core.distillation.distill import StudentSpec, distill, replacement_student
from grafting_core.specs.backbone import DIT_XL_2_256, backbone_cards
from grafting_core.specs.design import ReplaceOperator
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators import KINDS
from grafting_core.specs.plans import DistillPlan
from grafting_core.specs.site import GraftSite
from grafting_core.training.observer import NoCheckpoints, NullObserver, StopRequested

TRAINING = 3
"""Cost of forward and backward of an operator, in forwards (beta of the formula)."""
CROWD = "hyena_x"
STATE_BYTES = 16
"""Bytes per parameter: float32 weight, gradient and two moments."""
DIT_B = BlockDims(width=768, num_heads=12, mlp_ratio=4.0, grid=(16, 16))
GAIN_COLUMNS = (
    "backbone",
    "sites",
    "kinds",
    "batch",
    "R",
    "gain",
    "of R",
    "teacher forwards a step",
    "of peak",
)
MEMORY_COLUMNS = ("backbone", "peak at 4", "peak at 40", "difference", "36 candidates' state")


@dataclasses.dataclass(frozen=True)
class Case:
    """Sites times kinds on one backbone."""

    backbone: str
    blocks: Sequence[int]
    kinds: Sequence[str]
    batch: int
    steps: int


CASES = (
    Case("testbed", range(8), ("hyena_x", "mlp"), 64, 3),
    Case("testbed", range(8), ("hyena_x", "window_attention", "linear_attention", "mlp", "conv_mlp"), 64, 2),
    Case("dit-b", range(1, 8), ("hyena_x", "mlp"), 2, 1),
)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="print the second table alone")
    parser.add_argument("--peak", nargs=2, metavar=("BACKBONE", "CANDIDATES"), help="print one peak in bytes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        print(peak(given.peak[0], int(given.peak[1])))
        return
    if not given.memory:
        print(_head(GAIN_COLUMNS))
        for case in CASES:
            print(_row(gain(case, given.rounds)), flush=True)
    print(f"\n{_head(MEMORY_COLUMNS)}")
    for backbone in ("testbed", "dit-b"):
        print(_row(memory(backbone)), flush=True)


def gain(case: Case, rounds: int) -> list[str]:
    """Measure the one pass and the separate runs alternately, round by round."""
    backbone, latents = teacher(case.backbone)
    candidates = offered(case.blocks, case.kinds, plan(case.batch))
    together: list[Timing] = []
    alone: list[float] = []
    peaks: list[float] = []
    for _ in range(rounds):
        peaks.append(matmul_flops_per_second())
        together.append(timed(backbone, candidates, latents, case.steps))
        alone.append(sum(timed(backbone, [each], latents, case.steps).seconds for each in candidates))
    measured = statistics.median(a / t.seconds for a, t in zip(alone, together, strict=True))
    forward, trained = flops(backbone, candidates)
    allowed = (len(trained) * forward + sum(trained)) / (forward + sum(trained))
    speed = case.batch * (forward + sum(trained)) / statistics.median(t.seconds for t in together)
    return [
        case.backbone,
        str(len(case.blocks)),
        str(len(case.kinds)),
        str(case.batch),
        f"{allowed:.1f}",
        f"{measured:.1f}",
        f"{measured / allowed:.0%}",
        f"{max(t.forwards for t in together):g}",
        f"{speed / statistics.median(peaks):.0%}",
    ]


def teacher(name: str) -> tuple[Backbone, Latents]:
    """Return the testbed, or a DiT-B/2 for 256x256 images with random weights, and latents of unit
    variance.
    """
    backbone = load_backbone("testbed/dit-fashion")
    size, classes = 7, 10
    if name == "dit-b":
        size, classes = 32, 1000
        card = DIT_XL_2_256.model_copy(update={"name": name, "depth": 12, "dims": DIT_B})
        backbone = dataclasses.replace(backbone, card=card, transformer=_random_dit_b())
    mean = torch.zeros(256, 4, size, size)
    labels = backbone.label_conditions(torch.arange(256) % classes)
    return backbone, Latents.of(backbone, EncodedImages(name, mean, torch.ones_like(mean), labels))


def _random_dit_b() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=DIT_B.num_heads,
        attention_head_dim=DIT_B.width // DIT_B.num_heads,
        in_channels=4,
        out_channels=8,
        num_layers=12,
        sample_size=32,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    silence_label_dropout(transformer)
    return transformer.eval().requires_grad_(False)


def plan(batch: int) -> DistillPlan:
    """Return a plan with more steps than any case takes: passes are stopped before their held-out
    evaluation.
    """
    return DistillPlan(steps=1000, batch_size=batch, held_out=8, images=256)


def offered(blocks: Sequence[int], kinds: Sequence[str], settings: DistillPlan) -> list[StudentSpec]:
    """Return a student of every kind at every block."""
    edits = [
        ReplaceOperator(
            site=GraftSite(block=block, slot=KINDS[kind].slots[0]), operator=KINDS[kind](kind=kind)
        )
        for block in blocks
        for kind in kinds
    ]
    return [replacement_student(edit, settings, f"{edit.site} {edit.operator}") for edit in edits]


def flops(backbone: Backbone, candidates: Sequence[StudentSpec]) -> tuple[int, list[int]]:
    """Return T, and 3 f of every candidate, per sample."""
    card = backbone.card
    kinds = [candidate.name.rsplit(" ", 1)[-1] for candidate in candidates]
    trained = [TRAINING * KINDS[kind](kind=kind).computed_flops(card.dims) for kind in kinds]
    return card.forward_flops(), trained


class Stopwatch(NullObserver):
    """Observer that records when each step ended and stops the pass after the last measured one."""

    def __init__(self, steps: int) -> None:
        self.at: list[float] = []
        self._steps = steps

    def progress(self, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        self.at.append(time.perf_counter())

    def stop_requested(self) -> bool:
        return len(self.at) > self._steps


@dataclasses.dataclass(frozen=True)
class Timing:
    """Median seconds of a step after the first, and teacher forwards per step."""

    seconds: float
    forwards: float


def timed(backbone: Backbone, candidates: Sequence[StudentSpec], latents: Latents, steps: int) -> Timing:
    """Time `steps` steps after one to warm up."""
    watch = Stopwatch(steps + 1)
    counted: list[int] = []
    handle = backbone.transformer.register_forward_hook(lambda *_: counted.append(1))
    with suppress(StopRequested):
        distill(backbone, candidates, latents, latents, observer=watch, checkpoints=NoCheckpoints())
    handle.remove()
    seconds = statistics.median(end - begin for begin, end in zip(watch.at[1:-1], watch.at[2:], strict=True))
    return Timing(seconds, len(counted) / (len(watch.at) - 1))


def matmul_flops_per_second(size: int = 1024) -> float:
    """Return the rate of a float32 matrix product, best of five."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def memory(backbone: str) -> list[str]:
    """Measure the peaks of two processes that do nothing else, and the needs of the additional candidates."""
    four, forty = (_peak_of(backbone, count) for count in (4, 40))
    extra = 36 * STATE_BYTES * KINDS[CROWD](kind=CROWD).num_params(_dims(backbone))
    return [backbone, _mib(four), _mib(forty), _mib(forty - four), _mib(extra)]


def _peak_of(backbone: str, candidates: int) -> int:
    command = [sys.executable, "-m", "benchmarks.distillation", "--peak", backbone, str(candidates)]
    # Freed blocks go back to the system, so that the peak is the memory in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def peak(backbone: str, count: int) -> int:
    """Return the peak of resident bytes while this many candidates are trained for three steps."""
    loaded, latents = teacher(backbone)
    timed(loaded, _crowd(backbone, count), latents, 2)
    # Not getrusage: there a child inherits the peak of its parent.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024


def _crowd(backbone: str, count: int) -> list[StudentSpec]:
    """Return candidates of one kind with different initial weights, several per site."""
    settings = plan(64 if backbone == "testbed" else 2)
    crowd = [
        dataclasses.replace(each, key=f"{each.key}/{seed}")
        for seed in range(5)
        for each in offered(range(8), [CROWD], settings.model_copy(update={"init_seed": seed}))
    ]
    return crowd[:count]


def _dims(backbone: str) -> BlockDims:
    return DIT_B if backbone == "dit-b" else backbone_cards()["testbed/dit-fashion"].dims


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _head(columns: Sequence[str]) -> str:
    return f"{_row(columns)}\n{'|---' * len(columns)}|"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())

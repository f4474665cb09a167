"""Savings by the bank: 20 designs over 3 kinds on the testbed, compared with distilling each design alone.

`python -m benchmarks.reuse [--steps 20]` draws, for every design and site, the original or one of the
kinds, and brings all scions of each design into a bank: an empty one each (alone), one for all in the
order of drawing (shared), and one that was filled with all scions in a single pass before (filled). Prints
distillations and distinct scions, seconds of stage 1 with scores, and the distillations of a second round.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence

import torch

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.registry import load_backbone
from grafting_core.data.datasets import encode_latents
from grafting_core.data.latents import Latents
from grafting_core.specs.design import ReplaceOperator
from grafting_core.specs.filling import FillSpec
from grafting_core.specs.operators import KINDS
from grafting_core.specs.plans import DistillPlan
from grafting_core.specs.scions import Part, ScionSpec
from grafting_core.storage.storage import Storage
from grafting_core.training.finetune import Shard
from workers.contract import RunTicket
from workers.observer import StopCondition
from workers.stages.context import Context, Group
from workers.stages.distill_missing import ensure_distilled
from workers.usage import UsageMeter

HYBRIDS = 20
OFFERED = ("hyena_x", "window_attention", "mlp")
COLUMNS = ("bank", "distillations", "distinct scions", "second time", "stage 1, s", "of alone")


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    backbone = load_backbone("testbed/dit-fashion")
    plan = DistillPlan(steps=given.steps, batch_size=32, learning_rate=1e-3, held_out=64, images=512)
    bench = Bench(backbone, encode_latents(backbone, plan.images), plan)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    bench.run()


class Bench:
    """Banks in separate folders; everything else is shared and loaded."""

    def __init__(self, backbone: Backbone, latents: Latents, plan: DistillPlan) -> None:
        self.backbone, self.latents, self.plan = backbone, latents, plan
        self.hybrids = [self._scions(_hybrid(backbone, seed)) for seed in range(HYBRIDS)]
        self.distinct = list({scion.key: scion for hybrid in self.hybrids for scion in hybrid}.values())

    def run(self) -> None:
        """Measure the three ways on the same designs."""
        self._deposit(tempfile.mkdtemp(), self.distinct)  # warm
        alone_made = alone_seconds = 0.0
        for hybrid in self.hybrids:
            with tempfile.TemporaryDirectory() as folder:
                made, seconds = self._deposit(folder, hybrid)
                alone_made, alone_seconds = alone_made + made, alone_seconds + seconds
        self._print("alone", int(alone_made), 0, alone_seconds, alone_seconds)
        for name in ("shared", "filled"):
            with tempfile.TemporaryDirectory() as folder:
                made, seconds = self._deposit(folder, self.distinct) if name == "filled" else (0, 0.0)
                more, longer = self._all(folder)
                again, _ = self._all(folder)
            self._print(name, made + more, again, seconds + longer, alone_seconds)

    def _all(self, folder: str) -> tuple[int, float]:
        results = [self._deposit(folder, hybrid) for hybrid in self.hybrids]
        return sum(made for made, _ in results), sum(seconds for _, seconds in results)

    def _deposit(self, folder: str, scions: Sequence[ScionSpec]) -> tuple[int, float]:
        """Return (scions distilled, seconds)."""
        context = self._context(folder, FillSpec(name="bench", scions=tuple(scions)))
        began = time.perf_counter()
        done = ensure_distilled(context, scions, "bench")
        return done.missing, time.perf_counter() - began

    def _context(self, folder: str, work: FillSpec) -> Context:
        storage = Storage(folder)
        ticket = RunTicket(run_id="bench", attempt=1, work=work, storage=folder)
        meter = UsageMeter(work, time.time())
        latents = {self.plan.images: self.latents}
        brake = StopCondition(storage, ticket, meter)
        return Context(ticket, storage, self.backbone, Group(Shard()), meter, brake, None, latents)

    def _scions(self, parts: Sequence[Part]) -> list[ScionSpec]:
        return [ScionSpec(backbone=self.backbone.card.ref, part=part, plan=self.plan) for part in parts]

    def _print(self, name: str, made: int, again: int, seconds: float, alone: float) -> None:
        cells = [
            name,
            str(made),
            str(len(self.distinct)),
            str(again),
            f"{seconds:.1f}",
            f"{seconds / alone:.1%}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def _hybrid(backbone: Backbone, seed: int) -> list[Part]:
    draw = random.Random(seed)
    parts: list[Part] = []
    for site in backbone.card.sites:
        kind = draw.choice([None, *(kind for kind in OFFERED if site.slot in KINDS[kind].slots)])
        if kind is not None:
            fields = {"ratio": 3.0} if kind == "mlp" else {}
            parts.append(ReplaceOperator(site=site, operator=KINDS[kind](kind=kind, **fields)))
    return parts


if __name__ == "__main__":
    sys.exit(main())

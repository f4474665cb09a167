"""A study of a hundred designs compared with as many grafts made one by one: cost, rank, quality.

`python -m benchmarks.search [--trials 100] [--out search.json]` runs on the testbed, on two processes of
one thread each. Device-seconds are the processes' CPU time, so that a busy machine does not change the
ratios.

Cost: bank, screening and five promotions over `trials` times the mean cost of a full graft as in the paper
(its own distillation, finetuning and evaluation; three designs of the study). Rank: Spearman's coefficient
of the first rung against final FID over designs at even steps of the screening's ranking, with a bootstrap
interval. Quality: the best promoted design against every baseline under the same limits. The integer
program is timed on 56 sites of 8 kinds and compared with exhaustive search on 729 designs.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.search_milp import milp_figures
from benchmarks.search_report import interval, show
from grafting_core.analysis.sensitivity import Intervention, replace_one
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.registry import load_backbone
from grafting_core.data.datasets import encode_held_out, encode_latents
from grafting_core.data.latents import Latents
from grafting_core.distillation.distill import distill, replacement_student
from grafting_core.evaluation.evaluate import fid_at
from grafting_core.evaluation.screening import Screener
from grafting_core.operators.table import build_operator
from grafting_core.specs.backbone import backbone_cards
from grafting_core.specs.design import GraftDesign, Part, ReplaceOperator
from grafting_core.specs.studies.integer_program import Chosen, Proposer
from grafting_core.specs.studies.rank_correlation import rank_correlation
from grafting_core.specs.studies.selection import select
from grafting_core.specs.studies.space import design_key
from grafting_core.specs.studies.study import StudySpec
from grafting_core.surgery.operate import operate
from grafting_core.training.finetune import finetune
from grafting_core.training.observer import NoCheckpoints, NullObserver
from service.domain.study_feasibility import parse_feasible_study
from service.studies.baselines import baseline_designs, fewer_steps
from service.studies.optuna_study import Known, OptunaMirror
from service.studies.predictor import refined_scores
from service.studies.proposing import Round

PROCESSES = 2
PAPER_GRAFTS = 3
RANKED = 16


def document(given: argparse.Namespace) -> dict[str, Any]:
    """Return the study of `examples/studies/fast-and-good.yaml`, with the plans of this run."""
    return {
        "name": "benchmark",
        "backbone": "testbed/dit-fashion",
        "space": {
            "attention": ["keep", "hyena_x", {"kind": "window_attention", "half_width": 2}],
            "mlp": ["keep", {"kind": "mlp", "ratio": 3}, {"kind": "mlp", "ratio": 6}],
        },
        "objectives": [{"minimize": f"fid{given.samples}"}],
        "limits": {"params": "<= 1.0x", "flops": "<= 0.85x"},
        "sampler": {"kind": "tpe", "seed": given.seed},
        "screening": {
            "trials": given.trials,
            "rungs": ["loss_gap", f"fid{given.rung}"],
            "reduction": 5,
            "loss_draws": 256,
        },
        "promote": 5,
        "rounds": 2,
        "distill": {"steps": given.distill, "warmup_steps": 10, "images": 2000, "held_out": 64},
        "finetune": {"steps": given.finetune, "warmup_steps": 10, "images": 2000},
    }


@dataclass
class Hand:
    """State of one process of the pool."""

    spec: StudySpec
    backbone: Backbone
    latents: Latents
    states: Mapping[Part, Mapping[str, torch.Tensor]]

    def scion(self, part: Part) -> nn.Module:
        assert isinstance(part, ReplaceOperator)
        module = build_operator(part.operator, self.backbone.card.dims)
        module.load_state_dict(self.states[part])
        return module.eval()


HAND: list[Any] = []
"""State and screener of this process."""


def begin(spec: StudySpec, states: Mapping[Part, Mapping[str, torch.Tensor]]) -> None:
    """Initialise a process of the pool."""
    torch.set_num_threads(1)
    backbone = load_backbone(spec.backbone.name)
    hand = Hand(spec, backbone, encode_latents(backbone, spec.finetune.images), states)
    HAND[:] = [hand, Screener(backbone, spec.evaluate, hand.scion)]


def screened(task: tuple[GraftDesign, int]) -> tuple[float, float]:
    """Return (metric, CPU-seconds) of one design on one rung."""
    began = time.process_time()
    hand, screener = HAND
    return screener.evaluate(task[0], hand.spec.rungs[task[1]]).value, time.process_time() - began


def finished(task: tuple[GraftDesign, int]) -> tuple[float, float]:
    """Return (final FID, CPU-seconds) of a design finetuned from bank scions and sampled in this many
    steps.
    """
    began = time.process_time()
    hand: Hand = HAND[0]
    design, steps = task
    protocol = hand.spec.evaluate.model_copy(update={"sampling_steps": steps})
    graft = load_backbone(hand.spec.backbone.name)
    network = graft.transformer
    if not design.is_teacher:
        operate(graft, design, {edit.site: hand.scion(edit) for edit in design.edits})
        plan = hand.spec.finetune
        weights = finetune(graft, plan, hand.latents, observer=NullObserver(), checkpoints=NoCheckpoints())
        network.load_state_dict(weights)
    network.requires_grad_(False).eval()
    value = fid_at(hand.backbone, network, protocol, protocol.samples)
    return value, time.process_time() - began


def filled(spec: StudySpec, parts: Sequence[Part]) -> tuple[dict[Part, Any], dict[Part, float], float]:
    """Return (states, replace-one scores, CPU-seconds) of distilling all parts in one pass."""
    torch.set_num_threads(1)
    backbone = load_backbone(spec.backbone.name)
    latents = encode_latents(backbone, spec.distill.images)
    began = time.process_time()
    edits = {str(at): part for at, part in enumerate(parts) if isinstance(part, ReplaceOperator)}
    candidates = [replacement_student(edit, spec.distill, key) for key, edit in edits.items()]
    results = distill(
        backbone,
        candidates,
        latents,
        encode_held_out(backbone),
        observer=NullObserver(),
        checkpoints=NoCheckpoints(),
    )
    states = {edits[key]: result.state for key, result in results.items()}
    hand = Hand(spec, backbone, latents, states)
    places = {key: _placing(hand, edit) for key, edit in edits.items()}
    scores = replace_one(backbone, places, encode_held_out(backbone))
    named = {edits[key]: each["replace_one/noise"] for key, each in scores.items()}
    return states, named, time.process_time() - began


def _placing(hand: Hand, edit: ReplaceOperator) -> Intervention:
    module = hand.scion(edit)
    design = GraftDesign.of(hand.backbone.card.ref, [edit])
    return lambda: operate(hand.backbone, design, {edit.site: module})


class Study:
    """One study with its results and their cost."""

    def __init__(self, spec: StudySpec, folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self.costs: dict[str, float] = {}
        self.trials: list[Chosen] = []
        self.first: list[float] = []
        self.second: dict[int, float] = {}

    def design(self, at: int) -> GraftDesign:
        return self.spec.space.design(self.trials[at])

    def fill(self) -> None:
        parts: list[Part] = [edit for item in self.spec.space.items for edit in item.edits]
        self.states, scores, self.costs["bank"] = filled(self.spec, parts)
        self.scores = {
            item.key: sum(scores[edit] for edit in item.edits) for item in self.spec.space.items if item.edits
        }

    def screen(self, pool: Any, number: int) -> None:
        """Run one round: propose, screen all on the first rung and the best on the second."""
        start = len(self.trials)
        began = time.process_time()
        for proposal in self._proposals(number):
            self.trials.append(proposal.chosen)
        new = range(start, len(self.trials))
        spent = time.process_time() - began
        found = pool.map(screened, [(self.design(at), 0) for at in new], chunksize=1)
        self.first += [value for value, _ in found]
        best = select([(self.first[at],) for at in new], round(len(new) / self.spec.reduction))
        climbed = [start + at for at in best]
        higher = pool.map(screened, [(self.design(at), 1) for at in climbed], chunksize=1)
        self.second |= {at: value for at, (value, _) in zip(climbed, higher, strict=True)}
        spent += sum(seconds for _, seconds in [*found, *higher])
        self.costs["screening"] = self.costs.get("screening", 0.0) + spent

    def _proposals(self, number: int) -> list[Any]:
        space = self.spec.space
        seen = list(zip(self.trials, self.first, strict=True))
        proposer = Proposer(space, refined_scores(space, self.scores, seen), self.spec.limits)
        known = {
            design_key(space.design(chosen)): Known(at, space.assignment(chosen), (value,), None)
            for at, (chosen, value) in enumerate(seen)
        }
        book = OptunaMirror(
            f"sqlite:///{self.folder / 'optuna.db'}", "study", space, self.spec.sampler, ("loss_gap",)
        )
        book.reconcile(list(known.values()))
        return Round(self.spec, number, proposer, book, known).collect(self.baselines if number == 1 else {})

    @property
    def baselines(self) -> dict[str, Chosen]:
        card = backbone_cards()[self.spec.backbone.name]
        found = baseline_designs(self.spec, card, self.scores)
        return {str(name): chosen for name, chosen in found.items()}

    def promoted(self) -> list[int]:
        """Return the best by the second rung, then the first."""
        climbed = sorted(self.second, key=lambda at: self.second[at])
        return climbed[: self.spec.promote]

    def ranked(self) -> list[int]:
        """Return trials at even steps of the first rung's ranking."""
        order = sorted(range(len(self.trials)), key=lambda at: self.first[at])
        return [order[round(step * (len(order) - 1) / (RANKED - 1))] for step in range(RANKED)]


def full_grafts(study: Study, pool: Any, designs: Sequence[int], finals: Mapping[int, float]) -> list[float]:
    """Return the CPU-seconds of making designs as in the paper: own distillation, finetuning, evaluation."""
    costs = []
    for at in designs:
        *_, seconds = filled(study.spec, list(study.design(at).edits))
        costs.append(seconds + finals[at])
    return costs


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Run the whole study; results so far are written to `--out` after every phase."""
    spec = parse_feasible_study(document(given))
    figures: dict[str, Any] = {"seed": given.seed, "trials": spec.trials, "milp": milp_figures()}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        study = Study(spec, Path(folder))
        study.fill()
        with context.Pool(PROCESSES, begin, (spec, study.states)) as pool:
            for number in (1, 2):
                study.screen(pool, number)
                figures["costs"] = study.costs
                keep(given, figures)
            finish(study, pool, given, figures)
    return figures


def finish(study: Study, pool: Any, given: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Finish promotions, baselines and the designs of the ranking, each design once."""
    spec, steps = study.spec, study.spec.evaluate.sampling_steps
    baselines = {name: study.trials.index(chosen) for name, chosen in study.baselines.items()}
    numbers = list(dict.fromkeys([*study.promoted(), *baselines.values(), *study.ranked()]))
    results = pool.imap(finished, [(study.design(at), steps) for at in numbers])
    finals: dict[int, float] = {}
    seconds: dict[int, float] = {}
    for at, (value, spent) in zip(numbers, results, strict=False):
        finals[at], seconds[at] = value, spent
        figures["finals"] = {
            number: {"final": finals[number], "first": study.first[number]} for number in finals
        }
        keep(given, figures)
    teacher = spec.experiment("teacher", spec.space.design(()))
    fewer = fewer_steps(spec, teacher)
    few = fewer.evaluate.sampling_steps if fewer else steps
    (whole, _), (short, _) = pool.map(finished, [(teacher.design, steps), (teacher.design, few)])
    named = {name: finals[at] for name, at in baselines.items()} | {f"fewer_steps ({few})": short}
    compared(study, figures, named, whole, finals)
    figures["costs"]["promotions"] = sum(seconds[at] for at in study.promoted())
    grafts = full_grafts(study, pool, study.promoted()[:PAPER_GRAFTS], seconds)
    total = sum(figures["costs"].values())
    figures["full_graft"] = statistics.mean(grafts)
    figures["cost_ratio"] = total / (len(study.trials) * figures["full_graft"])
    keep(given, figures)


def compared(
    study: Study,
    figures: dict[str, Any],
    baselines: Mapping[str, float],
    teacher: float,
    finals: Mapping[int, float],
) -> None:
    """Compute rank and quality."""
    ranked = study.ranked()
    ones, others = [study.first[at] for at in ranked], [finals[at] for at in ranked]
    everyone = list(finals)
    figures["rank"] = {
        "designs": len(ranked),
        "spearman": rank_correlation(ones, others),
        "interval": interval(ones, others, figures["seed"]),
        "all": rank_correlation([study.first[at] for at in everyone], [finals[at] for at in everyone]),
        "all_designs": len(everyone),
    }
    figures["best"] = min(finals[at] for at in study.promoted())
    figures["baselines"], figures["teacher"] = dict(baselines), teacher


def keep(given: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Write the results so far."""
    if given.out:
        Path(given.out).write_text(json.dumps(figures, indent=1))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distill", type=int, default=100)
    parser.add_argument("--finetune", type=int, default=80)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--rung", type=int, default=100)
    parser.add_argument("--out")
    given = parser.parse_args()
    show(run(given))


if __name__ == "__main__":
    main()

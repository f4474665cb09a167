"""DISTILL: distil all scions of the design that the bank lacks, in one pass of the teacher."""

from torch import nn

from grafting_core.specs.canonical import digest
from grafting_core.specs.design import Place
from grafting_core.specs.experiment import scions_of
from grafting_core.specs.scions import ScionCard
from grafting_core.storage.bank import Bank
from grafting_core.training.optim import Diverged
from workers.contract import StageReport
from workers.stages.context import Context
from workers.stages.distill_missing import DistillOutcome, ensure_distilled, module_of, score_restoring


def run(context: Context) -> StageReport:
    """Raises Diverged if a scion of the design diverged, after the others were published in the bank."""
    scions = scions_of(context.spec)
    key = digest({scion.name: scion.key for scion in scions})
    done = ensure_distilled(context, scions, key, context.scions)
    if done.diverged:
        text = "; ".join(f"{label}: {reason}" for label, reason in done.diverged.items())
        raise Diverged(f"distillation of {text}")
    if context.spec.restore_one and context.group.leads:
        score_restoring(context, scions)
    context.group.barrier()
    cards = [Bank(context.storage).card(scion.key) for scion in scions]
    return stage_report(context, key, [card for card in cards if card is not None], done)


def stage_report(context: Context, key: str, cards: list[ScionCard], done: DistillOutcome) -> StageReport:
    """Stage report with the errors and scores of all these scions, and which of them this run made."""
    bank = Bank(context.storage)
    metrics = {
        f"{name}/{_name(card, cards)}": value
        for card in cards
        for name, value in {**card.errors, **card.scores}.items()
        if "/t" not in name  # values by timestep are on the cards only
    }
    return StageReport(
        stage="distill",
        key=key,
        artifacts={_name(card, cards): bank.artifact(card) for card in cards},
        metrics=metrics,
        stop_cause="completed" if done.missing else "reused",
        made=done.made,
        made_by={_name(card, cards): card.made_by for card in cards if card.key not in done.made},
        found={card.key: card.spend for card in cards if card.key not in done.made},
        notes=done.notes,
    )


def _name(card: ScionCard, cards: list[ScionCard]) -> str:
    """The site; with the operator's kind where several scions have the same site."""
    alone = sum(other.scion.name == card.scion.name for other in cards) == 1
    return card.scion.name if alone else card.scion.label


def load_modules(context: Context) -> dict[Place, nn.Module]:
    """The design's distilled operators and merges with their weights."""
    bank = Bank(context.storage)
    return {
        scion.part.place: module_of(context.backbone, bank, scion, context.scions.get(scion.key))
        for scion in scions_of(context.spec)
    }

"""FILL: distil scions ahead of any design that needs them; divergence is reported, not a failure."""

from grafting_core.specs.filling import FillSpec
from grafting_core.storage.bank import Bank
from workers.contract import StageReport
from workers.stages.context import Context
from workers.stages.distill import stage_report
from workers.stages.distill_missing import ensure_distilled


def run(context: Context) -> StageReport:
    """Distil the missing scions of a fill. Raises ValueError for work of another kind."""
    work = context.work
    if not isinstance(work, FillSpec):
        raise ValueError(f"{work.name} is {work.kind} work, not a fill")
    done = ensure_distilled(context, work.scions, work.digest)
    cards = [Bank(context.storage).card(scion.key) for scion in work.scions]
    report = stage_report(context, work.digest, [card for card in cards if card is not None], done)
    lost = [f"{label} diverged: {reason}" for label, reason in done.diverged.items()]
    return report.model_copy(update={"notes": (*report.notes, *lost)})

"""Cache status of a plan's artifacts, the catalogue of scions, and garbage collection of the bank."""

import time
from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from grafting_core.specs.backbone import backbone_cards, card_of
from grafting_core.specs.budget import Usage
from grafting_core.specs.cost import ExperimentPlan, StagePlan, pass_flops_per_image
from grafting_core.specs.experiment import ExperimentSpec, scions_of
from grafting_core.specs.private_names import ANOTHERS, hidden, shown_name
from grafting_core.specs.scions import ImportedScion, ScionCard
from grafting_core.storage.bank import Bank
from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.registry_tables import USABLE, RegisteredRow
from service.db.tables import RunDependencyRow, RunRow
from service.domain.artifact_dependencies import is_there, needed_by_others
from service.schemas.bank import Cleared, ScionPage, ScionView
from service.schemas.runs import Holding, KeyState

FOLDERS = {"distill": "scions", "finetune": "models", "evaluate": "evaluations"}
DAY = 86_400.0
LOOKED_AT = 250
"""Limit of cards opened for one page."""


def holdings(session: Session, storage: Storage, planned: ExperimentPlan) -> list[Holding]:
    """Return the cache status of each stage of the plan."""
    keys = [key for stage in planned.stages for key in stage.keys.values()]
    needed_by = needed_by_others(session, keys)
    return [_holding(planned.experiment, storage, stage, needed_by) for stage in planned.stages]


def _holding(
    spec: ExperimentSpec, storage: Storage, stage: StagePlan, needed_by: Mapping[str, str]
) -> Holding:
    states = {name: _state(storage, stage, key, needed_by) for name, key in stage.keys.items()}
    new = [name for name, state in states.items() if state == "new"]
    spend = _distil_cost(spec, new) if stage.stage == "distill" else stage.spend if new else Usage()
    runs = {needed_by[stage.keys[name]] for name, state in states.items() if state == "in_flight"}
    return Holding(stage=stage.stage, states=states, new_spend=spend, waits_for=sorted(runs))


def _state(storage: Storage, stage: StagePlan, key: str, needed_by: Mapping[str, str]) -> KeyState:
    if is_there(storage, FOLDERS[stage.stage], key):
        return "banked"
    return "in_flight" if key in needed_by else "new"


def _distil_cost(spec: ExperimentSpec, names: Sequence[str]) -> Usage:
    """Return the cost of distilling the new scions in one run."""
    parts = [scion.part for scion in scions_of(spec) if scion.name in names]
    images = spec.distill.steps * spec.distill.batch_size if parts else 0
    card = card_of(spec.backbone)
    return Usage(flops=float(images * pass_flops_per_image(card, parts)), training_images=images)


def scion_page(
    session: Session,
    bank: Bank,
    *,
    limit: int,
    after: str,
    prefix: str,
    kind: str | None,
    backbone: str | None,
) -> ScionPage:
    """List scions in the order of their keys.

    At most LOOKED_AT cards are opened, so a filtered page may be short or even empty without being the
    last.
    """
    keys = [key for key in bank.names() if key > after and key.startswith(prefix)]
    cards: list[ScionCard] = []
    reached = ""
    for key in keys[:LOOKED_AT]:
        card = bank.card(key)
        if card is not None and _fits(card, kind, backbone):
            cards.append(card)
        reached = key
        if len(cards) == limit:
            break
    needed = needed_by_others(session, [card.key for card in cards])
    views = [scion_view(card, needed.get(card.key)) for card in cards]
    return ScionPage(scions=views, next_cursor=reached if keys and reached != keys[-1] else None)


def _fits(card: ScionCard, kind: str | None, backbone: str | None) -> bool:
    named = shown_name("backbone", card.scion.backbone.name)
    return kind in (None, card.scion.kind) and backbone in (None, named)


def scion_view(card: ScionCard, needed_by: str | None) -> ScionView:
    """Return the list entry of a scion."""
    card = card_to_show(card)
    return ScionView(
        key=card.key,
        site=card.scion.name,
        kind=card.scion.kind,
        operator=card.scion.operator,
        backbone=card.scion.backbone.name,
        nmse=card.nmse,
        replace_one=card.scores.get("replace_one/noise"),
        steps=card.steps,
        ending=card.ending,
        spend=card.spend,
        size=card.size,
        made_by=card.made_by,
        made_at=card.made_at,
        needed_by=needed_by,
        origin=card.scion.origin if isinstance(card.scion, ImportedScion) else None,
    )


def card_to_show(card: ScionCard) -> ScionCard:
    """Return the card without the origin of an imported operator whose backbone the reader may not know of:
    the origin names its owner's folder.
    """
    scion = card.scion
    if not isinstance(scion, ImportedScion) or ("backbone", scion.backbone.name) not in hidden():
        return card
    return card.model_copy(update={"scion": scion.model_copy(update={"origin": ANOTHERS})})


def clear(
    database: Database, bank: Bank, *, older_than_days: float | None, max_bytes: int | None, dry_run: bool
) -> Cleared:
    """Delete the scions that were needed longest ago: those older than the limit, then down to `max_bytes`.

    Scions that an unfinished run needs are kept, and imported ones while the backbone that they came with is
    registered: no plan makes them again. Remains of scions that were never finished are deleted
    too: progress of cancelled runs, divergences, damage. Age counts from the last run that needed the
    scion, else from when it was made. No lock is held during storage operations: each scion's use is
    checked right before it is deleted, and a run that needs it a moment later makes it again.
    """
    cards, names = list(bank.cards()), bank.names()
    with database.reading() as session:
        needed = needed_by_others(session, names)
        last_needed = _last_needed(session, [card.key for card in cards])
        imported = _imported(session, cards)
    free = sorted(
        (card for card in cards if card.key not in needed and card.key not in imported),
        key=lambda c: last_needed.get(c.key, c.made_at),
    )
    total = sum(card.size for card in cards)
    chosen = list(_chosen(free, last_needed, total, older_than_days, max_bytes))
    banked = {card.key for card in cards}
    remains = [key for key in names if key not in banked and key not in needed]
    if dry_run:
        removed, freed = [card.key for card in chosen], sum(card.size for card in chosen)
    else:
        sizes = {key: _remove(database, bank, key) for key in [*(card.key for card in chosen), *remains]}
        removed = [card.key for card in chosen if sizes[card.key] is not None]
        remains = [key for key in remains if sizes[key] is not None]
        freed = sum(size or 0 for size in sizes.values())
    return Cleared(
        removed=removed,
        bytes=freed,
        remains=len(remains),
        kept_for_runs=len(banked & needed.keys()),
        kept_imported=len(imported - needed.keys()),
        dry_run=dry_run,
    )


def _imported(session: Session, cards: Sequence[ScionCard]) -> set[str]:
    """Keys of imported scions whose backbone is in the lab."""
    found = {card.key: card.scion.backbone for card in cards if isinstance(card.scion, ImportedScion)}
    digests = {ref.digest for ref in found.values()}
    query = select(RegisteredRow.digest).where(
        RegisteredRow.what == "backbone", RegisteredRow.state.in_(USABLE), RegisteredRow.digest.in_(digests)
    )
    there = set(session.scalars(query)) | {card.digest for card in backbone_cards().values()}
    return {key for key, ref in found.items() if ref.digest in there}


def _remove(database: Database, bank: Bank, key: str) -> int | None:
    """Delete a scion and return the bytes freed; None if a run needs it by now."""
    with database.reading() as session:
        needed = needed_by_others(session, [key])
    return None if needed else bank.remove(key)


def _chosen(
    free: Sequence[ScionCard],
    last_needed: Mapping[str, float],
    total: int,
    older_than_days: float | None,
    max_bytes: int | None,
) -> Iterator[ScionCard]:
    for card in free:
        age = (time.time() - last_needed.get(card.key, card.made_at)) / DAY
        too_old = older_than_days is not None and age > older_than_days
        if too_old or (max_bytes is not None and total > max_bytes):
            total -= card.size
            yield card


def _last_needed(session: Session, keys: Sequence[str]) -> dict[str, float]:
    """Return by key the creation time, in seconds since 1970, of the newest run that needs or needed it."""
    query = (
        select(RunDependencyRow.key, func.max(RunRow.created_at).label("at"))
        .join(RunRow, RunRow.id == RunDependencyRow.run_id)
        .where(RunDependencyRow.key.in_(keys))
        .group_by(RunDependencyRow.key)
    )
    return {row.key: row.at.timestamp() for row in session.execute(query)}

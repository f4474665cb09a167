"""Views of registered things for pages, API and command line."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.datasets import DatasetCard
from grafting_core.specs.features import FeatureCard
from grafting_core.specs.plugins import Entry
from grafting_core.specs.private_names import as_shown, hidden
from grafting_core.specs.registration import TABLES, What
from service.db.registry_tables import USABLE, RegisteredRow
from service.domain.registry import NAMING
from service.schemas.registry import RegisteredDetail, RegisteredView, RevisionView

Card = BackboneCard | DatasetCard | FeatureCard


def registered_views(session: Session, what: What) -> list[RegisteredView]:
    """List everything of a kind that the caller may see; what ships with packages comes first."""
    by_name: dict[str, list[RegisteredRow]] = {name: [] for name in TABLES[what].entries}
    for row in _rows(session, what):
        by_name.setdefault(row.name, []).append(row)
    return [_view(what, name, rows) for name, rows in by_name.items()]


def registered_detail(session: Session, what: What, name: str) -> RegisteredDetail | None:
    """Return the thing of this name; None if there is none that the caller may see."""
    rows = _rows(session, what, RegisteredRow.name == name)
    if not rows and name not in TABLES[what]:
        return None
    card = _card(TABLES[what].get(name))
    return RegisteredDetail(
        **_view(what, name, rows).model_dump(),
        card=card.model_dump(mode="json", exclude={"weights", "folder"}) if card else None,
        revisions=list(_revisions(rows)),
    )


def _rows(session: Session, what: What, *conditions: ColumnElement[bool]) -> list[RegisteredRow]:
    """Return the rows of every visible name that has a revision or is being registered."""
    unseen = {name for table, name in hidden() if table == TABLES[what].what}
    query = select(RegisteredRow).where(
        RegisteredRow.what == what, RegisteredRow.state.in_(NAMING), *conditions
    )
    rows = session.scalars(query.order_by(RegisteredRow.name, RegisteredRow.revision, RegisteredRow.id)).all()
    alive = {row.name for row in rows if row.state != "removed"} - unseen
    return [row for row in rows if row.name in alive]


def _view(what: What, name: str, rows: Sequence[RegisteredRow]) -> RegisteredView:
    ready = [row for row in rows if row.state in USABLE]
    under_way = [row.run_id for row in rows if row.state == "registering"]
    card = _card(TABLES[what].get(name))
    shown: dict[str, Any] = {"what": what, "name": name, "registering": under_way[0] if under_way else None}
    if card is not None:
        shown |= {"digest": card.digest, "summary": _summary(card), "figures": _figures(card)}
    if not rows:
        return RegisteredView(**shown, shipped=True, licence=card.licence if card else None)
    own = {"owner": rows[0].owner, "private": rows[0].private}
    if not ready:
        return RegisteredView(**shown, **own)
    newest = ready[-1]
    return RegisteredView(
        **shown,
        **own,
        revision=newest.revision,
        damaged=newest.state == "damaged",
        size=newest.size,
        licence=newest.licence,
        created_at=newest.created_at,
    )


def _revisions(rows: Sequence[RegisteredRow]) -> Iterator[RevisionView]:
    for row in rows:
        if row.revision is not None and row.state in ("ready", "damaged", "removed"):
            yield RevisionView(
                revision=row.revision,
                digest=row.digest,
                size=row.size,
                licence=row.licence,
                state=row.state,
                run_id=row.run_id,
                created_at=row.created_at,
            )


def _card(entry: Entry | None) -> Card | None:
    """Return an entry's card, with the names of others' private things in it replaced."""
    found: Card | None = getattr(entry, "card", None)
    return as_shown(found) if found else None


def _summary(card: Card) -> str:
    if isinstance(card, BackboneCard):
        height, width = card.dims.grid
        labels = f"{card.num_classes} classes" if card.num_classes else "no labels"
        parts = [f"{card.depth} blocks of {card.dims.width}", f"{height} x {width} tokens", labels]
        arithmetic = [] if card.arithmetic == "diffusers" else [f"{card.arithmetic} arithmetic"]
        return ", ".join([*parts, *arithmetic, *grafts_of(card)])
    if isinstance(card, DatasetCard):
        kind = "pixels" if card.autoencoder is None else "latents"
        sides = " x ".join(map(str, card.image_size))
        labels = f"{len(card.classes)} classes" if card.classes else "no labels"
        return f"{card.training:,} + {card.held_out:,} images of {sides}, {kind}, {labels}"
    judged = f", classes of {card.dataset.name}" if card.dataset else ""
    return f"{card.kind}, {card.dims} features{judged}"


def grafts_of(card: BackboneCard) -> list[str]:
    """Return the kinds of operators that a backbone holds instead of pretrained ones: `14 hyena_x`."""
    kinds = Counter(edit.operator.kind for edit in card.edits)
    pairs = [f"{len(card.pairs)} pairs"] if card.pairs else []
    return [f"{count} {kind}" for kind, count in kinds.items()] + pairs


def _figures(card: Card) -> dict[str, float]:
    if isinstance(card, BackboneCard):
        sizes = {"parameters": float(card.num_params), "flops_per_forward": float(card.forward_flops())}
        return sizes | card.figures
    if isinstance(card, DatasetCard):
        return {"training": float(card.training), "held_out": float(card.held_out)}
    accuracy = {} if card.accuracy is None else {"accuracy": card.accuracy}
    return {"features": float(card.dims), **accuracy}

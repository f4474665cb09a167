"""Fill this process's tables with the lab's registered things, and hide private ones from other users."""

import json
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from grafting_core.specs.backbone import BackboneCard, register_cards
from grafting_core.specs.datasets import DatasetCard, register_datasets
from grafting_core.specs.features import FeatureCard, register_features
from grafting_core.specs.jobs import Job
from grafting_core.specs.private_names import Hidden, hide, hiding
from grafting_core.specs.registration import (
    CONTENT,
    TABLES,
    Registry,
    What,
    registry_folder,
)
from service.db.engine import Database
from service.db.registry_tables import USABLE, RegisteredRow
from service.domain.api_keys import Principal
from service.domain.named_revisions import revisions_named_by
from service.domain.revision_damage import check_intact
from service.domain.visibility import hide_runs, hiding_runs

EVERYBODY = Principal(owner="", role="viewer")
"""Reader of what is shown to all users alike: MLflow's pages, and messages to other services."""
C = TypeVar("C", BackboneCard, DatasetCard, FeatureCard)
NAMING = ("registering", "ready", "damaged", "removed")
"""States of rows whose name belongs to their owner."""
CARDS: dict[str, type[BackboneCard] | type[DatasetCard] | type[FeatureCard]] = {
    "backbone": BackboneCard,
    "dataset": DatasetCard,
    "features": FeatureCard,
}


@dataclass(frozen=True)
class PrivateThing:
    """A registration that only its owner and admins may know of."""

    what: What
    name: str
    owner: str
    run_id: str
    names_it: bool
    """Whether the name belongs to it; that of a failed registration or a check may be somebody else's."""


class _Known:
    """Content of the database from which the tables of this process were filled."""

    lock = threading.Lock()
    mark: object = None
    private: tuple[PrivateThing, ...] = ()


def refresh(session: Session) -> None:
    """Update this process's tables from the database; one small query if nothing has changed.

    Changes show in the number of rows by state and in the highest id by state: a registration that succeeds
    or is removed changes its state, and a removed revision that is registered again has a new row.
    """
    states = session.execute(
        select(RegisteredRow.state, func.count(), func.max(RegisteredRow.id))
        .group_by(RegisteredRow.state)
        .order_by(RegisteredRow.state)
    )
    mark = (str(session.get_bind().engine.url), tuple(tuple(row) for row in states))
    with _Known.lock:
        if mark == _Known.mark:
            return
        rows = session.scalars(select(RegisteredRow).order_by(RegisteredRow.revision, RegisteredRow.id)).all()
        _fill(rows)
        _Known.private = tuple(
            PrivateThing(row.what, row.name, row.owner, row.run_id, row.state in NAMING)
            for row in rows
            if row.private
        )
        _Known.mark = mark


def load_registered(database_url: str) -> None:
    """Fill the tables of a process outside the lab, such as a command that reads its database."""
    database = Database(database_url)
    with database.reading() as session:
        refresh(session)
    database.engine.dispose()


def _fill(rows: Sequence[RegisteredRow]) -> None:
    ready = [row for row in rows if row.state in USABLE]
    removed = [row for row in rows if row.state == "removed"]
    former = list(_cards(removed, BackboneCard))
    kept = [row for row in rows if row.state in (*USABLE, "removed")]
    register_cards(_cards(kept, BackboneCard), removed=former)
    register_datasets(_cards(ready, DatasetCard))
    register_features(_cards(ready, FeatureCard))


def _cards(rows: Sequence[RegisteredRow], model: type[C]) -> Iterator[C]:
    for row in rows:
        if CARDS[row.what] is model:
            yield _stored(row, model)


def _stored(row: RegisteredRow, model: type[C]) -> C:
    """Return the card of a revision with the path of its files in storage; a removed one has no files."""
    card = model.model_validate_json(json.dumps(row.card))
    place = f"{registry_folder(row.what, row.digest)}/{CONTENT}" if row.state in USABLE else None
    return card.model_copy(update={"weights" if isinstance(card, BackboneCard) else "folder": place})


def show_to(principal: Principal) -> None:
    """Hide private things from the rest of this context, unless the principal is their owner or an admin."""
    names, runs = _unseen_by(principal)
    hide(names)
    hide_runs(runs)


@contextmanager
def showing_to_everybody(session: Session) -> Iterator[None]:
    """Hide all private things for the duration of the block."""
    refresh(session)
    names, runs = _unseen_by(EVERYBODY)
    with hiding(names), hiding_runs(runs):
        yield


def _unseen_by(principal: Principal) -> tuple[Hidden, frozenset[str]]:
    """Return the names of private things that the principal may not know of, and the runs that register
    them.
    """
    unseen = [
        thing for thing in _Known.private if principal.role != "admin" and thing.owner != principal.owner
    ]
    names = frozenset((TABLES[thing.what].what, thing.name) for thing in unseen if thing.names_it)
    return names, frozenset(thing.run_id for thing in unseen)


def registry_for(session: Session, work: Job) -> Registry:
    """The cards that a worker needs for this work. Raises ValueError where one of them is gone or damaged."""
    check_intact(session, work)
    named = revisions_named_by(work)
    cards = list(_cards(_rows(session, "backbone", named["backbone"]), BackboneCard))
    datasets = list(_cards(_rows(session, "dataset", named["dataset"]), DatasetCard))
    missing = named["dataset"].keys() - {card.digest for card in datasets}
    if missing:
        raise ValueError(f"the data set with the digest {min(missing)[:12]} is not registered any more")
    features = list(_cards(_rows(session, "features", named["features"]), FeatureCard))
    return Registry(backbones=tuple(cards), datasets=tuple(datasets), features=tuple(features))


def _rows(session: Session, what: str, digests: Collection[str]) -> list[RegisteredRow]:
    if not digests:
        return []
    query = select(RegisteredRow).where(
        RegisteredRow.what == what, RegisteredRow.digest.in_(digests), RegisteredRow.state == "ready"
    )
    return list(session.scalars(query.order_by(RegisteredRow.revision, RegisteredRow.id)))

"""Ranking of finished runs that were evaluated under the same protocol."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.orm import Session

from grafting_core.specs.backbone import BackboneCard, BackboneRef, known_card
from grafting_core.specs.budget import Usage
from grafting_core.specs.cost import image_flops
from grafting_core.specs.experiment import own_fingerprint
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.private_names import hidden
from service.db.tables import ExperimentRow, LeaderboardEntryRow, RunRow
from service.domain.design_cost import without
from service.domain.leaderboard_entries import cost_known
from service.domain.pretraining import share_of_pretraining
from service.domain.rank_ranges import with_ties
from service.domain.run_queries import parsed, spends_of
from service.domain.stopped_runs import cut_short
from service.domain.visibility import first_to, names_something_hidden, title_to
from service.schemas.leaderboard import FirstMade, Leaderboard, LeaderboardGroup, LeaderboardRow

PAGE = 100
GROUPS = 10
"""Number of groups in one answer, the largest ones; other groups are requested by their protocol."""


class BadCursor(ValueError):
    """The cursor is not a run of this ranking."""


def leaderboard(
    session: Session,
    owner: str | None = None,
    *,
    protocol: str | None = None,
    after: str | None = None,
    limit: int = PAGE,
) -> Leaderboard:
    """Return the best runs of the largest groups, grouped by protocol digest.

    An experiment that ran several times counts once, with its latest run. `protocol` selects one group,
    from the run id `after` on. Raises BadCursor.
    """
    ranked = _ranked(owner)
    if protocol is not None:
        ranked.append(LeaderboardEntryRow.protocol_digest == protocol)
    counts = _counts(session, ranked)
    if after is not None and not counts:
        raise BadCursor(after)
    shown = sorted(sorted(counts, key=lambda group: -group[1])[:GROUPS])
    return Leaderboard(
        groups=[
            _group(
                session, [*ranked, LeaderboardEntryRow.protocol_digest == digest], count, after, limit, owner
            )
            for digest, count in shown
        ],
        other_protocols=sorted({digest for digest, _ in counts} - {digest for digest, _ in shown}),
        cut_short=cut_short(session, owner, protocol),
    )


def _ranked(owner: str | None) -> list[ColumnElement[bool]]:
    return (
        [LeaderboardEntryRow.is_current.is_(True)] if owner is None else [LeaderboardEntryRow.owner == owner]
    )


def _counts(session: Session, ranked: Sequence[ColumnElement[bool]]) -> list[tuple[str, int]]:
    query = select(LeaderboardEntryRow.protocol_digest, func.count()).where(*ranked)
    grouped = query.group_by(LeaderboardEntryRow.protocol_digest).order_by(
        LeaderboardEntryRow.protocol_digest
    )
    return [(digest, count) for digest, count in session.execute(grouped)]


def _group(
    session: Session,
    ranked: Sequence[ColumnElement[bool]],
    total: int,
    after: str | None,
    limit: int,
    owner: str | None,
) -> LeaderboardGroup:
    start, rows = _page(session, ranked, after, limit + 1)
    shown = rows[:limit]
    first = shown[0] if shown else session.scalars(select(LeaderboardEntryRow).where(*ranked).limit(1)).one()
    subject, protocol = judged_by(session, first.run_id)
    fingerprint = own_fingerprint(subject, protocol)
    teacher = _teacher(session, ranked, first.backbone, subject, protocol)
    # Not stored in the entry: what a run pays changes when another run shares its work.
    spends = spends_of(session, [row.run_id for row in shown])
    withheld = names_something_hidden(first.backbone, protocol)
    ranked_rows = [
        _row(rank, row, spends.get(row.run_id, Usage()), teacher, owner, subject)
        for rank, row in enumerate(shown, start + 1)
    ]
    return LeaderboardGroup(
        backbone=first.backbone,
        licence=_licence(first.backbone, subject),
        protocol_digest=first.protocol_digest,
        protocol=protocol,
        # Of runs that an older version of the arithmetic has evaluated, only the digest is known.
        fingerprint=fingerprint if fingerprint.digest == first.protocol_digest else None,
        metric=first.metric,
        total=total,
        rows=[
            row.model_copy(update={"name": title_to(row.name, withheld)})
            for row in with_ties(session, ranked_rows)
        ],
        next_cursor=shown[-1].run_id if len(rows) > limit else None,
    )


def _licence(backbone: str, digest: str) -> str | None:
    """Return the licence of a backbone; None where it is not known, or the reader sees no such backbone."""
    card = known_card(BackboneRef(name=backbone, digest=digest))
    return card.licence if card is not None and ("backbone", backbone) not in hidden() else None


def _page(
    session: Session, ranked: Sequence[ColumnElement[bool]], after: str | None, count: int
) -> tuple[int, Sequence[LeaderboardEntryRow]]:
    """Return the next rows after the run `after`, and the rank of that run (0 for the first page)."""
    query = (
        select(LeaderboardEntryRow)
        .where(*ranked)
        .order_by(LeaderboardEntryRow.value, LeaderboardEntryRow.run_id)
        .limit(count)
    )
    if after is None:
        return 0, session.scalars(query).all()
    start = _place(session, ranked, after)
    behind = query.where(_behind(session.get_one(LeaderboardEntryRow, after)))
    return start, session.scalars(behind).all()


def judged_by(session: Session, run_id: str) -> tuple[str, EvaluationProtocol]:
    """Return the backbone's digest and the protocol of a graft; the rest of its document is not parsed."""
    spec = ExperimentRow.spec
    query = select(spec["design"]["backbone"]["digest"].as_string(), spec["evaluate"])
    subject, protocol = session.execute(query.join(RunRow).where(RunRow.id == run_id)).one()
    return subject, parsed(EvaluationProtocol, protocol)


def _behind(row: LeaderboardEntryRow) -> ColumnElement[bool]:
    """Condition: ranked after this row."""
    return tuple_(LeaderboardEntryRow.value, LeaderboardEntryRow.run_id) > tuple_(row.value, row.run_id)


def _place(session: Session, ranked: Sequence[ColumnElement[bool]], run_id: str) -> int:
    """Return the rank of a run in its group. Raises BadCursor if it has none."""
    row = session.scalars(
        select(LeaderboardEntryRow).where(*ranked, LeaderboardEntryRow.run_id == run_id)
    ).first()
    if row is None:
        raise BadCursor(run_id)
    behind = session.scalar(
        select(func.count()).select_from(LeaderboardEntryRow).where(*ranked, _behind(row))
    )
    total = session.scalar(select(func.count()).select_from(LeaderboardEntryRow).where(*ranked))
    return int(total or 0) - int(behind or 0)


@dataclass(frozen=True)
class Teacher:
    """Figures of the teacher that rows are compared with; quality must be measured, size and FLOPs are
    computed.
    """

    value: float | None
    num_params: int | None
    flops_per_image: int | None

    @classmethod
    def of(
        cls, row: LeaderboardEntryRow | None, card: BackboneCard | None, protocol: EvaluationProtocol
    ) -> "Teacher":
        """Return the measured teacher, else the values of its card; a value that is unknown is None."""
        if row is not None:
            return cls(row.value, row.num_params, row.flops_per_image)
        if card is None:
            return cls(None, None, None)
        return cls(None, card.num_params, image_flops(protocol, card, card.forward_flops()))


def _teacher(
    session: Session,
    ranked: Sequence[ColumnElement[bool]],
    backbone: str,
    subject: str,
    protocol: EvaluationProtocol,
) -> Teacher:
    """Return the group's teacher; `subject` is the digest of the backbone that was evaluated."""
    query = select(LeaderboardEntryRow).where(*ranked, LeaderboardEntryRow.is_teacher.is_(True))
    row = session.scalars(query.order_by(LeaderboardEntryRow.value).limit(1)).first()
    return Teacher.of(row, known_card(BackboneRef(name=backbone, digest=subject)), protocol)


def _row(
    rank: int, row: LeaderboardEntryRow, paid: Usage, teacher: Teacher, owner: str | None, subject: str
) -> LeaderboardRow:
    made, backbone = cost_known(row), BackboneRef(name=row.backbone, digest=subject)
    return LeaderboardRow(
        rank=rank,
        rank_from=rank,
        rank_to=rank,
        run_id=row.run_id,
        name=row.name,
        is_teacher=row.is_teacher,
        metric=row.metric,
        value=row.value,
        value_change=_change(row.value, teacher.value),
        num_params=row.num_params,
        params_change=_change(row.num_params, teacher.num_params),
        flops_per_image=row.flops_per_image,
        flops_change=_change(row.flops_per_image, teacher.flops_per_image),
        made=made,
        spend=paid,
        saved=without(made, paid) if made else None,
        first=_first(row, owner),
        share_of_pretraining=share_of_pretraining(backbone, made.flops) if made else None,
    )


def _first(row: LeaderboardEntryRow, owner: str | None) -> FirstMade | None:
    if row.first_run_id is None or row.first_owner is None:
        return None
    return first_to(owner, FirstMade(run_id=row.first_run_id, owner=row.first_owner, at=row.first_at))


def _change(value: float, teachers: float | None) -> float | None:
    return value / teachers - 1 if teachers else None

"""Check the invariants of the whole store."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from grafting_core.specs.backbone import BackboneRef
from grafting_core.storage.artifacts import CARD
from grafting_core.storage.storage import Storage
from service.db.tables import (
    AccountRow,
    AttemptRow,
    EventRow,
    ExperimentRow,
    RunRow,
    StageRow,
)
from service.db.webhook_tables import DeliveryRow
from service.domain.budgets import AccountId, AccountUsage, keys_of, settled, title, usage_of
from service.domain.pretraining import BACKBONE_DIGEST
from service.domain.run_lifecycle import LIVE, MOVES
from service.schemas.runs import TERMINAL

TOLERANCE = 1e-6
"""Relative tolerance for sums of the same numbers in another order."""
BATCH = 1000


@dataclass(frozen=True)
class Violation:
    """One invariant that does not hold; `run_id` is empty if it does not concern a run."""

    invariant: str
    run_id: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.run_id or 'the lab'}: {self.text}"


def verify(session: Session, storage: Storage | None = None) -> list[Violation]:
    """Return all violations by invariant; files are checked only if storage is given.

    Reads the whole store once, in batches; changes nothing.
    """
    violations = [
        Violation(name, run_id, text) for name, check in INVARIANTS.items() for run_id, text in check(session)
    ]
    if storage is not None:
        violations += [Violation("artifacts-exist", *wrong) for wrong in missing_artifacts(session, storage)]
    return violations


Wrong = Iterator[tuple[str, str]]


def _one_live_attempt(session: Session) -> Wrong:
    """A running run has one open attempt, its newest; any other run has none."""
    open_ones = (
        select(AttemptRow.run_id, func.count().label("count"), func.max(AttemptRow.number).label("newest"))
        .where(AttemptRow.ended_at.is_(None))
        .group_by(AttemptRow.run_id)
        .subquery()
    )
    live = RunRow.state.in_(LIVE)
    right = and_(live, open_ones.c.count == 1, open_ones.c.newest == RunRow.attempt)
    none = and_(~live, open_ones.c.count.is_(None))
    query = (
        select(RunRow.id, RunRow.state, open_ones.c.count)
        .outerjoin(open_ones, open_ones.c.run_id == RunRow.id)
        .where(~func.coalesce(or_(right, none), False))
    )
    for run_id, state, count in session.execute(query):
        yield run_id, f"is {state} with {count or 0} open attempts"


def _attempts_numbered(session: Session) -> Wrong:
    """Attempts are numbered from 1 without gaps, up to the run's own number."""
    query = (
        select(RunRow.id, RunRow.attempt, func.count(AttemptRow.number), func.max(AttemptRow.number))
        .outerjoin(AttemptRow, AttemptRow.run_id == RunRow.id)
        .group_by(RunRow.id, RunRow.attempt)
    )
    for run_id, attempt, count, highest in session.execute(query):
        if not attempt == count == (highest or 0):
            yield run_id, f"is at attempt {attempt}, has {count} attempts, the highest {highest}"


def _events_gapless(session: Session) -> Wrong:
    """Events are numbered from 1 without gaps, up to the run's own count."""
    query = (
        select(RunRow.id, RunRow.last_event, func.count(EventRow.id), func.max(EventRow.seq))
        .outerjoin(EventRow, EventRow.run_id == RunRow.id)
        .group_by(RunRow.id, RunRow.last_event)
    )
    for run_id, last, count, highest in session.execute(query):
        if not last == count == (highest or 0):
            yield run_id, f"counts {last} events, has {count}, the highest numbered {highest}"


def _moves_allowed(session: Session) -> Wrong:
    """Every state follows from the one before by an allowed move, and the last one is the run's."""
    query = (
        select(EventRow.run_id, EventRow.body, RunRow.state)
        .join(RunRow, RunRow.id == EventRow.run_id)
        .where(EventRow.kind == "state")
        .order_by(EventRow.run_id, EventRow.seq)
        .execution_options(yield_per=BATCH)
    )
    for run_id, rows in groupby(session.execute(query), key=lambda row: row.run_id):
        history = [(row.body["state"], row.body["attempt"], row.state) for row in rows]
        states = [state for state, _, _ in history]
        if states[0] != "QUEUED" or states[-1] != history[0][2]:
            yield run_id, f"is {history[0][2]}, but its events go from {states[0]} to {states[-1]}"
        for before, after in pairwise(states):
            if after not in MOVES[before]:
                yield run_id, f"went from {before} to {after}"
        attempts = [attempt for _, attempt, _ in history]
        if attempts != sorted(attempts):
            yield run_id, f"went back to an earlier attempt: {attempts}"


def _reports_have_a_writer(session: Session) -> Wrong:
    """Every report comes from an attempt of its run, and every succeeded run has a report."""
    query = (
        select(StageRow.run_id, StageRow.stage, StageRow.attempt)
        .outerjoin(
            AttemptRow,
            and_(AttemptRow.run_id == StageRow.run_id, AttemptRow.number == StageRow.attempt),
        )
        .where(AttemptRow.run_id.is_(None))
    )
    for run_id, stage, attempt in session.execute(query):
        yield run_id, f"has a report of {stage} from attempt {attempt}, which it does not have"
    reported = select(StageRow.run_id)
    for run_id in session.scalars(
        select(RunRow.id).where(RunRow.state == "SUCCEEDED", RunRow.id.not_in(reported))
    ):
        yield run_id, "succeeded without a report"


def _reservations_released(session: Session) -> Wrong:
    """Only running runs hold a reservation of shared budgets."""
    claims = (RunRow.reserved_device_seconds, RunRow.reserved_flops, RunRow.reserved_images)
    query = select(RunRow.id, RunRow.state).where(
        RunRow.state.not_in(LIVE), or_(*(column != 0 for column in claims))
    )
    for run_id, state in session.execute(query):
        yield run_id, f"is {state} and still reserves a budget"


def _charged_once(session: Session) -> Wrong:
    """Every account equals the sum of the ended attempts charged to it."""
    totals: dict[AccountId, AccountUsage] = {}
    query = (
        select(AttemptRow, RunRow.owner, RunRow.tag, ExperimentRow.backbone, BACKBONE_DIGEST)
        .join(RunRow, RunRow.id == AttemptRow.run_id)
        .join(ExperimentRow, ExperimentRow.id == RunRow.experiment_id)
        .where(AttemptRow.ended_at.is_not(None))
        .execution_options(yield_per=BATCH)
    )
    for attempt, owner, tag, backbone, digest in session.execute(query):
        used = usage_of(BackboneRef(name=backbone, digest=digest), attempt.spend)
        for key in keys_of(owner, tag):
            totals[key] = totals.get(key, AccountUsage()) + used
    for account in session.scalars(select(AccountRow)):
        key = (account.scope, account.name)
        expected = totals.pop(key, AccountUsage())
        if not _close(settled(account), expected):
            yield "", f"the account of {title(key)} has {settled(account)}, its attempts used {expected}"
    for key, used in totals.items():
        if used != AccountUsage():
            yield "", f"{title(key)} has no account, but used {used}"


def _close(one: AccountUsage, two: AccountUsage) -> bool:
    pairs = zip(vars(one).values(), vars(two).values(), strict=True)
    return all(abs(mine - theirs) <= TOLERANCE * max(1.0, abs(mine), abs(theirs)) for mine, theirs in pairs)


def _spend_not_negative(session: Session) -> Wrong:
    """No attempt has used a negative amount."""
    query = select(AttemptRow.run_id, AttemptRow.number).where(
        or_(AttemptRow.device_seconds < 0, AttemptRow.flops < 0, AttemptRow.event_seq < 0)
    )
    for run_id, number in session.execute(query):
        yield run_id, f"attempt {number} has used a negative amount"


def _pruned_before_the_end(session: Session) -> Wrong:
    """Only ended runs have had checkpoints deleted."""
    query = select(RunRow.id, RunRow.state).where(
        RunRow.state.not_in(TERMINAL), RunRow.checkpoints_pruned != ""
    )
    for run_id, state in session.execute(query):
        yield run_id, f"is {state}, and its checkpoints count as deleted"


def _tracking_behind(session: Session) -> Wrong:
    """The projection to MLflow is not ahead of the events."""
    query = select(RunRow.id, RunRow.mlflow_event, RunRow.last_event).where(
        RunRow.mlflow_event > RunRow.last_event
    )
    for run_id, projected, last in session.execute(query):
        yield run_id, f"was projected to event {projected} of {last}"


def _deliveries_tell_of_ends(session: Session) -> Wrong:
    """Every webhook message about a run reports an end that the run reached."""
    announced = and_(EventRow.run_id == DeliveryRow.subject, EventRow.seq == DeliveryRow.number)
    query = (
        select(DeliveryRow.subject, DeliveryRow.type, DeliveryRow.number, EventRow.body)
        .outerjoin(EventRow, and_(announced, EventRow.kind == "state"))
        .where(DeliveryRow.type.like("run.%"))
        .execution_options(yield_per=BATCH)
    )
    for run_id, type_, number, body in session.execute(query):
        state = (body or {}).get("state")
        if state not in TERMINAL or type_ != f"run.{state.lower()}":
            yield run_id, f"a delivery announces {type_}, but its event {number} says {state or 'no state'}"


def _deliveries_counted(session: Session) -> Wrong:
    """Delivered messages have a 2xx status, and pending ones have not ended."""
    arrived = and_(DeliveryRow.state == "DELIVERED", DeliveryRow.status.between(200, 299))
    waits = and_(DeliveryRow.state == "PENDING", DeliveryRow.ended_at.is_(None))
    right = or_(arrived, waits, DeliveryRow.state == "FAILED")
    query = select(DeliveryRow.message_id, DeliveryRow.state, DeliveryRow.status)
    for message_id, state, status in session.execute(query.where(~func.coalesce(right, False))):
        yield "", f"delivery {message_id} is {state} with status {status}"


INVARIANTS: Mapping[str, Callable[[Session], Wrong]] = {
    "one-live-attempt": _one_live_attempt,
    "attempts-numbered": _attempts_numbered,
    "events-gapless": _events_gapless,
    "moves-allowed": _moves_allowed,
    "reports-have-a-writer": _reports_have_a_writer,
    "reservations-released": _reservations_released,
    "charged-once": _charged_once,
    "spend-not-negative": _spend_not_negative,
    "tracking-behind": _tracking_behind,
    "pruned-before-the-end": _pruned_before_the_end,
    "deliveries-tell-of-ends": _deliveries_tell_of_ends,
    "deliveries-counted": _deliveries_counted,
}


def missing_artifacts(session: Session, storage: Storage) -> Wrong:
    """Files that the reports name exist, except exports that were deleted as a whole."""
    query = select(StageRow.run_id, StageRow.stage, StageRow.report).execution_options(yield_per=BATCH)
    for run_id, stage, report in session.execute(query):
        if stage == "export" and not storage.exists(report["artifacts"][CARD]):
            continue
        for name, path in report["artifacts"].items():
            if not storage.exists(path):
                yield run_id, f"{stage} names {name} at {path}, which does not exist"

"""States of a registration: it begins with its run, becomes a revision on success, is removed on request."""

import json
from collections.abc import Sequence
from pathlib import PurePath

from sqlalchemy import String, cast, select
from sqlalchemy.orm import Session

from grafting_core.specs.documents.errors import shown
from grafting_core.specs.private_names import ANOTHERS, shown_name
from grafting_core.specs.registration import TABLES, Registered, RegistrationSpec, What
from service.db.registry_tables import USABLE, RegisteredRow, RegisteredState
from service.db.study_tables import StudyRow
from service.db.tables import ExperimentRow, RunRow
from service.domain.registration_quota import left_of
from service.domain.revision_damage import mark
from service.domain.visibility import hidden_runs
from service.schemas.runs import TERMINAL, RunState
from workers.contract import Reason, StageReport

CURRENT = ("registering", "ready", "damaged", "removed")
"""States of rows whose name belongs to their owner."""


class NameTaken(ValueError):
    """The name belongs to another user, or its privacy differs from the request's."""


class UnderWay(ValueError):
    """Another registration of this name has not ended."""


class StillNeeded(ValueError):
    """Unfinished work, or another card, needs the revision."""


def begin(session: Session, run: RunRow, work: RegistrationSpec) -> None:
    """Reserve the name for this run, and its bytes of the owner's quota. Raises NameTaken, UnderWay.

    Of two requests at once, the second raises IntegrityError, and UnderWay when it is repeated.
    """
    if work.action == "verify":
        session.add(_row(run, work, "check"))
        return
    rows = _named(session, work.what, work.name, CURRENT)
    kind = TABLES[work.what].what
    if any(row.owner != run.owner for row in rows):
        raise NameTaken(f"the {kind} {work.name} is not yours; choose another name")
    if any(row.state == "registering" for row in rows):
        other = next(row.run_id for row in rows if row.state == "registering")
        raise UnderWay(f"{work.name} is being registered by run {other}; wait for its end or cancel it")
    if any(row.private != work.private for row in rows):
        how = "private" if rows[0].private else "the lab's"
        raise NameTaken(f"the {kind} {work.name} is {how}, and so are its revisions; choose another name")
    _check_source(session, rows, work)
    row = _row(run, work, "registering")
    row.size = work.max_bytes or 0
    session.add(row)
    session.flush()


def _check_source(session: Session, rows: Sequence[RegisteredRow], work: RegistrationSpec) -> None:
    """Raises NameTaken for a checkpoint under the name of something else, and the other way round.

    The same file again, or one of the same name in a folder of the same name, is a revision of it.
    """
    newest = next((row for row in reversed(rows) if row.state in USABLE), None)
    if newest is None or work.another_revision:
        return
    run = session.get_one(RunRow, newest.run_id)
    before = RegistrationSpec.model_validate_json(json.dumps(run.experiment.spec))
    either = work.is_checkpoint or before.is_checkpoint
    if either and _place(work) != _place(before):
        raise NameTaken(
            f"the backbone {work.name} was registered from {'/'.join(_place(before))}; choose another name, "
            "or say with another_revision that this is its next revision"
        )


def _place(work: RegistrationSpec) -> tuple[str, ...]:
    """Names of a source and of the folder or repository that it is in."""
    if work.hub is not None:
        return (work.hub.repository.rpartition("/")[2], *([work.hub.file] if work.hub.file else []))
    return PurePath(str(work.path)).parts[-2:]


def _row(run: RunRow, work: RegistrationSpec, state: RegisteredState) -> RegisteredRow:
    return RegisteredRow(
        what=work.what,
        name=work.name,
        owner=run.owner,
        private=work.private,
        licence=work.licence,
        run_id=run.id,
        state=state,
    )


def _named(session: Session, what: What, name: str, states: Sequence[str]) -> list[RegisteredRow]:
    query = select(RegisteredRow).where(
        RegisteredRow.what == what, RegisteredRow.name == name, RegisteredRow.state.in_(states)
    )
    return list(session.scalars(query.order_by(RegisteredRow.revision, RegisteredRow.id)))


def _of_run(session: Session, run: RunRow) -> RegisteredRow | None:
    if run.experiment.kind != "registration":
        return None
    return session.scalars(select(RegisteredRow).where(RegisteredRow.run_id == run.id)).first()


def keep_card(session: Session, run: RunRow, report: StageReport) -> None:
    """Store the card that the worker has published. Its name can be used once the run has succeeded."""
    row, made = _of_run(session, run), report.registered
    if row is None or made is None or row.state != "registering":
        return
    row.digest, row.size = made.card.digest, made.size
    row.licence = made.card.licence or row.licence
    row.card = _without_place(made)


def _without_place(made: Registered) -> dict[str, object]:
    """Return the card without the path of its files, which each process adds for itself."""
    place = "weights" if made.what == "backbone" else "folder"
    return made.card.model_copy(update={place: None}).model_dump(mode="json")


def follow_run(session: Session, run: RunRow, to: RunState, reason: Reason | None = None) -> None:
    """Update the registration to its run's new state. Raises UnderWay if the name has another by now."""
    row = _of_run(session, run)
    if row is not None and row.state == "check":
        return _note_check(session, run, to, reason)
    if row is None or row.state not in ("registering", "failed"):
        return
    if to == "SUCCEEDED":
        _settle(session, row)
    elif to in TERMINAL:
        row.state, row.card, row.digest, row.size = "failed", None, "", 0
    elif row.state == "failed":
        _begin_again(session, row)
        _reserve_again(session, run, row)


def _note_check(session: Session, run: RunRow, to: RunState, reason: Reason | None) -> None:
    """Mark the revision that was read as damaged or intact; of other ends nothing follows."""
    spec = run.experiment.spec
    if to == "SUCCEEDED":
        mark(session, spec["what"], spec["subject"], "ready")
    elif to == "FAILED" and reason == "bad_input":
        mark(session, spec["what"], spec["subject"], "damaged")


def _reserve_again(session: Session, run: RunRow, row: RegisteredRow) -> None:
    """Reserve what is left by now, up to what the run had before. Raises UnderWay where nothing is left."""
    left, spec = left_of(session, row.owner), run.experiment.spec
    if left is None:
        return
    if left <= 0:
        raise UnderWay(f"{row.owner} may register no more bytes; remove something first")
    row.size = left if spec.get("max_bytes") is None else min(left, spec["max_bytes"])
    run.experiment.spec = {**spec, "max_bytes": row.size}


def _begin_again(session: Session, row: RegisteredRow) -> None:
    others = _named(session, row.what, row.name, CURRENT)
    if any(
        each.state == "registering" or (each.owner, each.private) != (row.owner, row.private)
        for each in others
    ):
        raise UnderWay(f"{row.name} has been registered otherwise since; register it anew")
    row.state = "registering"


def _settle(session: Session, row: RegisteredRow) -> None:
    """Make it the next revision; if the files are those of an earlier revision, it becomes that one."""
    mark(session, row.what, row.digest, "ready")
    earlier = _named(session, row.what, row.name, (*USABLE, "removed"))
    same = next((each for each in earlier if each.digest == row.digest), None)
    if same is None:
        row.revision = 1 + max((each.revision or 0 for each in earlier), default=0)
        row.state = "ready"
        return
    same.state, same.size, same.licence, same.card = "ready", row.size, row.licence, row.card
    row.revision, row.state, row.card, row.size = same.revision, "repeated", None, 0


def find_revisions(session: Session, what: What, name: str) -> list[RegisteredRow]:
    """Return the usable revisions of a name, oldest first, private ones included."""
    return _named(session, what, name, USABLE)


def remove(session: Session, rows: Sequence[RegisteredRow]) -> None:
    """Take revisions out of the tables; the scheduler deletes files that no revision has any more.

    Raises StillNeeded. What past runs have found with them stays.
    """
    for row in rows:
        needed = _needed_by(session, row)
        if needed:
            raise StillNeeded(f"{row.name} is needed by {needed}")
    for row in rows:
        row.state, row.size = "removed", 0


def _needed_by(session: Session, row: RegisteredRow) -> str | None:
    """What needs this revision, in words."""
    return work_that_names(session, row.digest) or _card_that_names(session, row)


def work_that_names(session: Session, digest: str) -> str | None:
    """The run or study that has not ended and names this digest, in words."""
    names = cast(ExperimentRow.spec, String).contains(digest)
    runs = select(RunRow.id).join(ExperimentRow, ExperimentRow.id == RunRow.experiment_id)
    run = session.scalar(runs.where(RunRow.state.not_in(TERMINAL), names).order_by(RunRow.id).limit(1))
    if run:
        return f"run {ANOTHERS if run in hidden_runs() else run}, which has not ended"
    names = cast(StudyRow.spec, String).contains(digest)
    study = session.scalar(
        select(StudyRow.id).where(StudyRow.state.in_(("RUNNING", "PAUSED")), names).limit(1)
    )
    if study:
        return f"study {study}, which has not ended"
    return None


def _card_that_names(session: Session, row: RegisteredRow) -> str | None:
    if row.what != "dataset":
        return None
    ready = select(RegisteredRow).where(RegisteredRow.state.in_(USABLE), RegisteredRow.what != "dataset")
    newest = find_revisions(session, "dataset", row.name)[-1:] == [row]
    for other in session.scalars(ready):
        named = (other.card or {}).get("dataset")
        if (named == row.name and newest) or (isinstance(named, dict) and named.get("digest") == row.digest):
            kind = TABLES[other.what].what
            return f"{kind} {shown(shown_name(kind, other.name))}"
    return None

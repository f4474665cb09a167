"""Submit work once per Idempotency-Key, for every route that starts a run."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Response
from sqlalchemy.exc import IntegrityError

from grafting_core.specs.backbone import card_of
from grafting_core.specs.documents.errors import Problem, SpecError, shown
from grafting_core.specs.experiment import Resources
from grafting_core.specs.jobs import Job
from grafting_core.specs.registration import RegistrationSpec
from service.api.deps import AppContext
from service.api.problems import ApiError
from service.db.study_tables import StudyRow
from service.db.tables import RunRow
from service.domain.memory_fit import accumulation_that_fits
from service.domain.registration_quota import RegistrationQuota
from service.domain.registrations import NameTaken, UnderWay
from service.domain.revision_damage import DamagedRevision, check_intact
from service.domain.submission import DEFAULT_OPTIONS, KeyReused, QueueOptions, QuotaReached, submit
from service.schemas.runs import Forecast, SubmitAnswer

T = TypeVar("T")
MAX_KEY = 255


async def _usable(idempotency_key: Annotated[str | None, Header()] = None) -> str | None:
    """Return the header if it can be stored. Raises ApiError."""
    if idempotency_key is None:
        return None
    if not (
        0 < len(idempotency_key) <= MAX_KEY and idempotency_key.isascii() and idempotency_key.isprintable()
    ):
        raise ApiError("bad-key", f"an Idempotency-Key has 1 to {MAX_KEY} printable ASCII characters")
    return idempotency_key


IdempotencyKey = Annotated[str | None, Depends(_usable)]


def check_startable(lab: AppContext, work: Job) -> None:
    """Refuse work that the lab could never start. Raises ApiError or SpecError."""
    name = work.backbone.name
    if not isinstance(work, RegistrationSpec) and card_of(work.backbone).weights is None:
        raise ApiError("not-runnable", f"{name} can be planned but not run: the lab has no weights of it")
    try:
        with lab.database.reading() as session:
            check_intact(session, work)
    except DamagedRevision as error:
        raise ApiError("conflict", str(error)) from error
    problems = list(beyond_devices(work.resources, lab.settings.cpus, lab.settings.gpus))
    if problems:
        raise SpecError(problems)


def beyond_devices(requested: Resources, cpus: int, gpus: int) -> Iterator[Problem]:
    """Yield a problem for each kind of resource of which the lab has too little, naming what it has."""
    kinds = (("CPUs", "cpus_per_worker", cpus), ("GPUs", "gpus_per_worker", gpus))
    for kind, field, available in kinds:
        per_worker = getattr(requested, field)
        if requested.workers * per_worker <= available:
            continue
        needed = f"{requested.workers} workers of {per_worker} {kind} need {requested.workers * per_worker}"
        message = f"{needed}; the lab has {available}"
        if available >= requested.workers:
            message += f": at most {available // requested.workers} per worker"
        # With a single CPU per worker, the number of workers is what must shrink.
        wrong = "workers" if (field, per_worker) == ("cpus_per_worker", 1) else field
        given = shown(getattr(requested, wrong))
        yield Problem(pointer=f"/resources/{wrong}", code="out-of-range", message=message, given=given)


def again_where_beaten(once: Callable[[], T]) -> T:
    """Call `once`, and again after an IntegrityError: a concurrent request with the same key has stored its
    row.
    """
    try:
        return once()
    except IntegrityError:
        return once()


def check_chargeable(lab: AppContext, tag: str | None) -> None:
    """Refuse a tag that is the id of another user's study, to admins too.

    Raises ApiError: not-found if the principal does not see the study, else forbidden.
    """
    if tag is None:
        return
    with lab.database.reading() as session:
        row = session.get(StudyRow, tag)
    who = lab.principal
    if row is None or row.owner == who.owner:
        return
    if who.only_owner is not None:
        raise ApiError("not-found", f"there is no study {tag!r} of yours; give your run another tag")
    raise ApiError("forbidden", f"study {tag} is {row.owner}'s; give your run another tag")


def accepted(response: Response, run: RunRow, notes: Sequence[str] = ()) -> SubmitAnswer:
    """Answer a submission with the run's address and the notes of its plan."""
    url = f"/api/v1/runs/{run.id}"
    response.headers["Location"] = url
    return SubmitAnswer(run_id=run.id, experiment_digest=run.experiment.digest, url=url, notes=list(notes))


def submit_once(
    lab: AppContext,
    work: Job,
    request_digest: str,
    key: str | None,
    forecast: Forecast | None = None,
    placing: QueueOptions = DEFAULT_OPTIONS,
) -> RunRow:
    """Return the run of this work; the same user and key get the same run, even from concurrent requests.

    Raises ApiError if the key was used with another body.
    """

    steps = accumulation_that_fits(lab.settings, work)

    def once() -> RunRow:
        with lab.database.writing() as session:
            owner = lab.principal.owner
            return submit(
                session,
                work,
                request_digest,
                key,
                forecast,
                owner=owner,
                placing=placing,
                accumulation_steps=steps,
            )

    try:
        return again_where_beaten(once)
    except (QuotaReached, RegistrationQuota) as error:
        raise ApiError("quota", str(error)) from error
    except KeyReused as error:
        raise ApiError("key-reused", str(error)) from error
    except (NameTaken, UnderWay, DamagedRevision) as error:
        raise ApiError("conflict", str(error)) from error

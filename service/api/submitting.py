"""Storing work once, however often it is asked for: what every route that starts a run goes through."""

from typing import Annotated

from fastapi import Depends, Header
from sqlalchemy.exc import IntegrityError

from grafting_core.spec.backbone import backbone_cards
from grafting_core.spec.experiment import Resources
from grafting_core.spec.problems import Problem, SpecError
from grafting_core.spec.work import Work
from service.api.deps import Lab
from service.api.problems import ApiError
from service.api.schemas import Forecast
from service.store.models import RunRow
from service.store.submissions import KeyReused, QuotaReached, submit

MAX_KEY = 255


def _usable(idempotency_key: Annotated[str | None, Header()] = None) -> str | None:
    """The header, if it can be kept. Raises ApiError."""
    if idempotency_key is None:
        return None
    if not (
        0 < len(idempotency_key) <= MAX_KEY and idempotency_key.isascii() and idempotency_key.isprintable()
    ):
        raise ApiError("bad-key", f"an Idempotency-Key has 1 to {MAX_KEY} printable ASCII characters")
    return idempotency_key


IdempotencyKey = Annotated[str | None, Depends(_usable)]


def check_weights(backbone: str) -> None:
    """Raises ApiError where the lab knows a backbone's sizes alone."""
    if backbone_cards()[backbone].weights is None:
        raise ApiError("not-runnable", f"{backbone} can be planned but not run: the lab has no weights of it")


def check_room(asked: Resources, cpus: int) -> None:
    """Refuse at the door what the lab could never start. Raises SpecError."""
    wanted = asked.workers * asked.cpus_per_worker
    if wanted > cpus:
        message = f"{asked.workers} workers of {asked.cpus_per_worker} CPUs are {wanted}; the lab has {cpus}"
        raise SpecError([Problem(pointer="/resources", code="out-of-range", message=message)])


def submit_once(
    lab: Lab, work: Work, request_digest: str, key: str | None, forecast: Forecast | None = None
) -> RunRow:
    """The run of this work; for the same user and key the same run, also of two requests at once.

    Raises ApiError where the key came with another body before.
    """
    try:
        return _submit(lab, work, request_digest, key, forecast)
    except IntegrityError:
        # The other request's row is there by now.
        return _submit(lab, work, request_digest, key, forecast)
    except QuotaReached as error:
        raise ApiError("quota", str(error)) from error
    except KeyReused as error:
        raise ApiError("key-reused", str(error)) from error


def _submit(lab: Lab, work: Work, request_digest: str, key: str | None, forecast: Forecast | None) -> RunRow:
    with lab.database.writing() as session:
        return submit(session, work, request_digest, key, forecast, owner=lab.principal.owner)

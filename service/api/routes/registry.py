"""Routes that register, list, show, verify and remove backbones, data sets and feature networks."""

from pathlib import Path
from typing import Annotated, NoReturn

from fastapi import APIRouter, Query, Response
from fastapi import Path as InPath
from sqlalchemy.orm import Session

from grafting_core.specs.documents.errors import Problem, SpecError, shown
from grafting_core.specs.documents.registrations import (
    BackboneDocument,
    DatasetDocument,
    FeaturesDocument,
    parse_backbone,
    parse_dataset,
    parse_features,
)
from grafting_core.specs.private_names import hidden
from grafting_core.specs.registration import NO_AUTOENCODER, TABLES, RegistrationSpec, What
from service.api.deps import AppContext, LabDep
from service.api.documents import DocumentRoute, Unresolved
from service.api.idempotency import IdempotencyKey, accepted, check_startable, submit_once
from service.api.problems import ApiError
from service.db.registry_tables import RegisteredRow
from service.domain.import_paths import PathNotAllowed, allowed_file, allowed_path
from service.domain.registrations import StillNeeded, find_revisions, remove
from service.domain.registry_queries import registered_detail, registered_views
from service.schemas.registry import RegisteredDetail, RegisteredView, Removed
from service.schemas.runs import SubmitAnswer

router = APIRouter(tags=["registry"], route_class=DocumentRoute)
WHAT: dict[str, What] = {"backbones": "backbone", "datasets": "dataset", "features": "features"}
"""Path segment -> kind of registered thing."""
Name = Annotated[str, InPath(max_length=200)]
Revision = Annotated[int | None, Query(ge=1, lt=2**31)]


@router.post("/backbones", status_code=202)
def add_backbone(
    body: Unresolved[BackboneDocument], lab: LabDep, response: Response, idempotency_key: IdempotencyKey
) -> SubmitAnswer:
    """Queue a run that copies a folder in diffusers' format, checks it and derives its card.

    Needs a key with the right to register. The path is on the lab's machine, under one of its import roots.
    """
    _check_right(lab)
    return _queue(lab, parse_backbone(body.document), body.request_digest, idempotency_key, response)


@router.post("/datasets", status_code=202)
def add_dataset(
    body: Unresolved[DatasetDocument], lab: LabDep, response: Response, idempotency_key: IdempotencyKey
) -> SubmitAnswer:
    """Queue a run that copies an encoded data set, or encodes images. Needs the right to register."""
    _check_right(lab)
    return _queue(lab, parse_dataset(body.document), body.request_digest, idempotency_key, response)


@router.post("/features", status_code=202)
def add_features(
    body: Unresolved[FeaturesDocument], lab: LabDep, response: Response, idempotency_key: IdempotencyKey
) -> SubmitAnswer:
    """Queue a run that copies an image model, or trains a classifier. Needs the right to register."""
    _check_right(lab)
    return _queue(lab, parse_features(body.document), body.request_digest, idempotency_key, response)


def _check_right(lab: AppContext) -> None:
    if not lab.principal.may_register:
        message = "registering is a right of its own; an admin gives it with `graft keys make --registers`"
        raise ApiError("forbidden", message)


def _queue(
    lab: AppContext, work: RegistrationSpec, request_digest: str, key: str | None, response: Response
) -> SubmitAnswer:
    resolved = _resolved(lab, work)
    check_startable(lab, resolved)
    return accepted(response, submit_once(lab, resolved, request_digest, key))


def _resolved(lab: AppContext, work: RegistrationSpec) -> RegistrationSpec:
    """Resolve the links in the work's paths. Raises SpecError if one is not under an import root."""
    found, problems = {}, []
    for field in ("path", "vae"):
        given = getattr(work, field)
        if given in (None, NO_AUTOENCODER):
            continue
        try:
            closed = [lab.settings.data_dir, Path(lab.settings.storage)]
            allowed = allowed_file if field == "path" and work.is_checkpoint else allowed_path
            found[field] = allowed(given, lab.settings.import_roots, closed)
        except PathNotAllowed as error:
            problems.append(
                Problem(pointer=f"/{field}", code="path-not-allowed", message=str(error), given=shown(given))
            )
    if problems:
        raise SpecError(problems)
    return work.model_copy(update=found)


@router.get("/datasets")
def list_datasets(lab: LabDep) -> list[RegisteredView]:
    """List data sets: those of packages first, then registered ones."""
    return _views(lab, "dataset")


@router.get("/features")
def list_features(lab: LabDep) -> list[RegisteredView]:
    """List feature networks: those of packages first, then registered ones."""
    return _views(lab, "features")


def _views(lab: AppContext, what: What) -> list[RegisteredView]:
    with lab.database.reading() as session:
        return registered_views(session, what)


def _add_routes(kind: str, what: What) -> None:
    """Add the routes that all kinds have: verify, show and remove."""

    @router.post(f"/{kind}/{{name:path}}/verify", status_code=202)
    def verify_registered(
        name: Name, lab: LabDep, response: Response, revision: Revision = None
    ) -> SubmitAnswer:
        """Queue a run that reads a revision again, by default the newest, and fails if it is damaged."""
        _check_right(lab)
        with lab.database.reading() as session:
            row = _to_change(session, lab, what, name, revision)[-1]
            private = row.private
        work = RegistrationSpec(what=what, action="verify", name=name, subject=row.digest, private=private)
        return accepted(response, submit_once(lab, work, row.digest, None))

    @router.get(f"/{kind}/{{name:path}}")
    def show_registered(name: Name, lab: LabDep) -> RegisteredDetail:
        """Return one with its card and revisions."""
        with lab.database.reading() as session:
            found = registered_detail(session, what, name)
        return found or _not_found(what, name)

    @router.delete(f"/{kind}/{{name:path}}")
    def remove_registered(name: Name, lab: LabDep, revision: Revision = None) -> Removed:
        """Remove one revision, or a name with all of them; refused while unfinished work needs it.

        Results of past runs stay, with the figures of the revision that they used.
        """
        _check_right(lab)
        return _removed(lab, what, name, revision)


for _kind, _what in WHAT.items():
    _add_routes(_kind, _what)


def _removed(lab: AppContext, what: What, name: str, revision: int | None) -> Removed:
    try:
        with lab.database.writing() as session:
            rows = _to_change(session, lab, what, name, revision)
            numbers, size = [row.revision or 0 for row in rows], sum(row.size for row in rows)
            remove(session, rows)
    except StillNeeded as error:
        raise ApiError("conflict", str(error)) from error
    return Removed(name=name, revisions=numbers, bytes=size)


def _to_change(
    session: Session, lab: AppContext, what: What, name: str, revision: int | None
) -> list[RegisteredRow]:
    """Return the usable revisions, oldest first. Raises ApiError: not-found, also if hidden, or forbidden."""
    unseen = (TABLES[what].what, name) in hidden()
    rows = [] if unseen else find_revisions(session, what, name)
    if TABLES[what].ships(name):
        raise ApiError("forbidden", f"{name} comes with a package; nobody registered it")
    rows = [row for row in rows if revision in (None, row.revision)]
    if not rows:
        _not_found(what, name if revision is None else f"{name}@{revision}")
    if not lab.principal.may_change(rows[0].owner):
        raise ApiError("forbidden", f"{name} is {rows[0].owner}'s; an admin can change it")
    return rows


def _not_found(what: What, name: str) -> NoReturn:
    raise ApiError("not-found", f"there is no {TABLES[what].what} {name!r}")

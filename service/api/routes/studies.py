"""Routes of studies: create, show, pause, resume, stop, extend, and their reports."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from grafting_core.specs.plans import warmup_notes
from grafting_core.specs.studies.study import StudyDocument
from service.api.deps import AppContext, LabDep
from service.api.documents import DocumentRoute, Unresolved
from service.api.idempotency import IdempotencyKey, again_where_beaten, check_startable
from service.api.problems import ApiError
from service.api.untrusted_content import inert_headers, media_type_of
from service.db.study_tables import StudyRow
from service.domain.studies import (
    ENDED,
    IllegalStudyMove,
    apply_to_runs,
    create_study,
    extend_study,
    move,
)
from service.domain.study_feasibility import parse_feasible_study
from service.domain.study_queries import study_detail, study_page
from service.domain.study_report_paths import REPORT_FILES, report_folder
from service.domain.study_samplers import sampler_record
from service.domain.submission import KeyReused
from service.domain.visibility import is_withheld
from service.schemas.studies import StudyAnswer, StudyDetail, StudyExtension, StudyPage

router = APIRouter(prefix="/studies", tags=["studies"], route_class=DocumentRoute)
Action = Literal["pause", "resume", "stop"]
StudyIdPart = Annotated[str | None, Query(max_length=32, pattern="^[0-9a-z]+$")]


@router.post("", status_code=202)
def create(
    body: Unresolved[StudyDocument],
    lab: LabDep,
    response: Response,
    idempotency_key: IdempotencyKey,
) -> StudyAnswer:
    """Store a study and start it. The same Idempotency-Key returns the same study."""
    spec = parse_feasible_study(body.document)
    check_startable(lab, spec.experiment(spec.name, spec.space.design(())))
    sampler, owner = sampler_record(spec.sampler), lab.principal.owner

    def once() -> StudyRow:
        with lab.database.writing() as session:
            return create_study(session, spec, sampler, body.request_digest, idempotency_key, owner)

    try:
        study = again_where_beaten(once)
    except KeyReused as error:
        raise ApiError("key-reused", str(error)) from error
    url = f"/api/v1/studies/{study.id}"
    response.headers["Location"] = url
    notes = warmup_notes(distill=spec.distill, finetune=spec.finetune)
    return StudyAnswer(study_id=study.id, url=url, notes=list(notes))


@router.get("")
def list_studies(
    lab: LabDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: StudyIdPart = None,
    prefix: StudyIdPart = None,
) -> StudyPage:
    """List studies, newest first, one page at a time; `prefix` is the beginning of an id."""
    with lab.database.reading() as session:
        return study_page(session, limit, lab.principal.only_owner, before=cursor, prefix=prefix)


@router.get("/{study_id}")
def show_study(study_id: str, lab: LabDep) -> StudyDetail:
    """Return one study with its designs, runs, and the comparison of its best with the baselines."""
    with lab.database.reading() as session:
        return study_detail(session, _seen(session, lab, study_id))


def _seen(session: Session, lab: AppContext, study_id: str) -> StudyRow:
    study = session.get(StudyRow, study_id)
    owner = lab.principal.only_owner
    if study is None or owner not in (None, study.owner):
        raise ApiError("not-found", f"there is no study {study_id!r}")
    return study


def _to_change(session: Session, lab: AppContext, study_id: str) -> StudyRow:
    """Return a study locked for writing. Raises ApiError: not-found if the principal does not see it,
    forbidden if it may not change it.
    """
    study = _seen(session, lab, study_id)
    if not lab.principal.may_change(study.owner):
        raise ApiError("forbidden", f"study {study_id} is {study.owner}'s; an admin can change it")
    return session.get_one(StudyRow, study_id, with_for_update=True, populate_existing=True)


@router.post("/{study_id}/extend")
def extend(study_id: str, body: StudyExtension, lab: LabDep) -> StudyDetail:
    """Add designs, promotions, rounds or device-seconds; an ended study continues."""
    with lab.database.writing() as session:
        study = _to_change(session, lab, study_id)
        if body.version != study.version:
            message = f"study {study_id} is at version {study.version}, not {body.version}; read it again"
            raise ApiError("illegal-transition", message)
        extend_study(session, study, body)
        if study.state in ENDED:
            move(session, study, "RUNNING")
    return show_study(study_id, lab)


@router.post("/{study_id}/{action}")
def change_study(study_id: str, action: Action, lab: LabDep) -> StudyDetail:
    """Pause, resume or stop a study and its runs; stopping keeps everything found."""
    with lab.database.writing() as session:
        study = _to_change(session, lab, study_id)
        try:
            _change(session, study, action)
        except IllegalStudyMove as error:
            raise ApiError("illegal-transition", str(error)) from error
    return show_study(study_id, lab)


def _change(session: Session, study: StudyRow, action: Action) -> None:
    if action == "pause":
        move(session, study, "PAUSED", "paused on request")
        apply_to_runs(session, study.id, "pause")
    elif action == "resume":
        if study.state == "DONE":
            raise IllegalStudyMove("a study that is DONE has no work left; extend it")
        move(session, study, "RUNNING")
        apply_to_runs(session, study.id, "resume")
    else:
        move(session, study, "STOPPED", "stopped on request")
        apply_to_runs(session, study.id, "cancel")


@router.get("/{study_id}/best")
def best_design(study_id: str, lab: LabDep) -> dict[str, Any]:
    """Return the best finished design as a document that can be submitted."""
    detail = show_study(study_id, lab)
    if detail.best_trial is None:
        raise ApiError("not-found", f"study {study_id} has no finished design yet")
    trial = next(row for row in detail.trial_rows if row.number == detail.best_trial)
    spec = detail.spec
    design = spec.space.design(spec.space.chosen(trial.assignment))
    edits: list[dict[str, Any]] = [
        {
            "replace": edit.site.slot,
            "layers": [edit.site.block],
            "with": edit.operator.model_dump(mode="json"),
        }
        for edit in design.edits
    ]
    if design.pairs:
        edits.append({"parallel_pairs": [list(pair.blocks) for pair in design.pairs]})
    plans = {
        name: getattr(spec, name).model_dump(mode="json") for name in ("distill", "finetune", "evaluate")
    }
    data = {"dataset": spec.distill.dataset.name} if spec.distill.dataset else {}
    name = f"{spec.name}: best"
    return {"name": name, "backbone": spec.backbone.name, **data, "edits": edits, **plans}


@router.get("/{study_id}/report/{name}")
def read_report(study_id: str, name: str, lab: LabDep) -> Response:
    """Return a file of the report: `report.md`, `report.html` or a picture."""
    with lab.database.reading() as session:
        if is_withheld(_seen(session, lab, study_id)):
            message = f"study {study_id} works with something private; its report is its owner's"
            raise ApiError("forbidden", message)
    path = f"{report_folder(study_id)}/{name}"
    if name not in REPORT_FILES or not lab.storage.exists(path):
        raise ApiError("not-found", f"study {study_id} has no report file {name!r} yet")
    media_type = media_type_of(name)
    return Response(lab.storage.read_bytes(path), media_type=media_type, headers=inert_headers(media_type))

"""A backbone's profile is asked for, found again, and used by selectors."""

from pathlib import Path

from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from grafting_core.specs.analysis import AnalysisSpec
from grafting_core.specs.backbone import BackboneCard, backbone_cards
from grafting_core.specs.documents.analyses import parse_analysis
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.profile import BackboneProfile, BandLocality
from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.tables import StageRow
from service.domain.backbone_profiles import completed_card
from service.domain.submission import submit
from tests.support.builders import document
from workers.contract import StageReport

ANALYSES = "/api/v1/analyses"
TESTBED = "testbed/dit-fashion"


def profile_of(card: BackboneCard, blocks: tuple[float, ...]) -> BackboneProfile:
    rows = (BandLocality(band=6, uniform=0.25, blocks=blocks),)
    return BackboneProfile(
        backbone=card.ref, samples=4, sampling_steps=2, seed=0, locality=rows, statistics=()
    )


def measured(session: Session, storage: Storage, asked: AnalysisSpec, profile: BackboneProfile) -> None:
    """An analysis that has succeeded."""
    run = submit(session, asked, "digest", None)
    run.state = "SUCCEEDED"
    path = f"profiles/{asked.backbone.digest}/{asked.digest}/profile.json"
    storage.write_model(path, profile)
    report = StageReport(stage="analyze", key=asked.digest, artifacts={"profile.json": path})
    row = StageRow(run_id=run.id, stage="analyze", attempt=1, report=report.model_dump(mode="json"))
    session.add(row)


def test_an_analysis_becomes_a_queued_run_of_its_kind(client: TestClient) -> None:
    answer = client.post(ANALYSES, json={"backbone": TESTBED, "bands": [3]})
    run = client.get(answer.headers["location"]).json()
    assert (answer.status_code, run["kind"], run["state"]) == (202, "analysis", "QUEUED")
    assert run["work"]["bands"] == [3]
    assert client.get(f"/runs/{run['id']}").status_code == 200


def test_what_cannot_be_measured_is_refused(client: TestClient) -> None:
    unknown = client.post(ANALYSES, json={"backbone": "dit"})
    assert (unknown.status_code, unknown.json()["pointer"]) == (422, "/backbone")
    assert client.post(ANALYSES, json={"backbone": "dit-xl-2-256"}).json()["code"] == "not-runnable"
    assert client.get("/api/v1/runs").json()["runs"] == []


def test_the_newest_profile_of_a_backbone_is_found(client: TestClient) -> None:
    lab = client.app.state.lab  # type: ignore[attr-defined]  # Starlette's application
    address = f"/api/v1/backbones/{TESTBED}/profile"
    assert client.get(address).status_code == 404
    profile = profile_of(backbone_cards()[TESTBED], (0.5,) * 8)
    with lab.database.writing() as session:
        measured(session, lab.storage, parse_analysis({"backbone": TESTBED}), profile)
    assert BackboneProfile.model_validate_json(client.get(address).content) == profile


def test_selectors_rank_by_a_measured_profile_where_the_card_has_none(
    database: Database, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path))
    bare = backbone_cards()[TESTBED].model_copy(update={"locality": None, "locality_band": None})
    assert completed_card(database, storage, bare) == bare
    mass = (0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6)
    with database.writing() as session:
        measured(session, storage, parse_analysis({"backbone": TESTBED}), profile_of(bare, mass))
    half = document(
        edits=[{"replace": "attention", "layers": {"top_local": 0.5}, "with": {"kind": "hyena_x"}}]
    )
    spec = parse_submission(half, lambda card: completed_card(database, storage, bare))
    assert [edit.site.block for edit in spec.design.edits] == [1, 3, 5, 7]

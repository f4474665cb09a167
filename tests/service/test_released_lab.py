"""A data folder that an earlier version left opens with everything, and its bank serves today's designs."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.parsing import read_document
from grafting_core.specs.experiment import scion_keys
from grafting_core.storage.bank import Bank
from grafting_core.storage.storage import Storage
from service.app import create_app
from service.local_keys import first_key
from service.settings import Settings

RELEASED = Path(__file__).parent / "released" / "0.1.0-lab.tar.xz"
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
DESIGNS = ("teacher", "hyena-x-half", "window-half", "mlp-ratio-3-half")
FIGURES = {"teacher": 1.682, "mlp-ratio-3-half": 2.224, "window-half": 2.498, "hyena-x-half": 2.615}
"""As that version's leaderboard showed them."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(RELEASED) as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def lab(folder: Path) -> Iterator[TestClient]:
    app = create_app(Settings(data_dir=folder))
    headers = {"Authorization": f"Bearer {first_key(folder)}"}
    with TestClient(app, "http://127.0.0.1", headers=headers) as client:
        yield client
    app.state.lab.database.engine.dispose()


@pytest.mark.parametrize("name", DESIGNS)
def test_no_operator_of_the_demos_designs_is_distilled_anew(folder: Path, name: str) -> None:
    spec = parse_submission(read_document((EXAMPLES / f"{name}.yaml").read_text()))
    bank = Bank(Storage(str(folder / "storage")))
    assert all(bank.has(key) and bank.verify(key) is None for key in scion_keys(spec).values())


def test_its_rows_stand_on_boards_of_their_own_protocol(lab: TestClient) -> None:
    groups = lab.get("/api/v1/leaderboard").json()["groups"]
    boards = {group["metric"]: {row["name"]: row["value"] for row in group["rows"]} for group in groups}
    assert boards["fid1k/fashion-cnn"] == pytest.approx(FIGURES, abs=5e-4)
    assert "small-study: promote 1" in boards["fid200/fashion-cnn"]


def test_its_runs_are_shown_with_their_events_and_figures(lab: TestClient) -> None:
    runs = lab.get("/api/v1/runs").json()["runs"]
    assert {run["name"] for run in runs} >= set(DESIGNS)
    for run in runs:
        assert run["state"] == "SUCCEEDED"
        assert lab.get(f"/api/v1/runs/{run['id']}").status_code == 200
        assert lab.get(f"/api/v1/runs/{run['id']}/history").json()["events"]
        assert lab.get(f"/runs/{run['id']}").status_code == 200


def test_its_study_is_shown_with_its_trials(lab: TestClient) -> None:
    (study,) = lab.get("/api/v1/studies").json()["studies"]
    shown = lab.get(f"/api/v1/studies/{study['id']}").json()
    assert (shown["name"], shown["state"]) == ("small-study", "DONE")
    proposed = [(trial["proposed_by"], trial["baselines"]) for trial in shown["trial_rows"]]
    assert proposed == [("baseline", ["interleaved"]), ("milp", []), ("random", []), ("random", [])]
    assert [each["baseline"] for each in shown["comparisons"]] == ["interleaved"]
    assert lab.get(f"/studies/{study['id']}").status_code == 200


def test_runs_of_its_study_have_the_studys_id_as_tag_and_its_account(lab: TestClient) -> None:
    (study,) = lab.get("/api/v1/studies").json()["studies"]
    tags = {run["name"]: run["tag"] for run in lab.get("/api/v1/runs").json()["runs"]}
    assert {tags[name] for name in DESIGNS} == {None}
    assert {tag for name, tag in tags.items() if name.startswith("small-study: ")} == {study["id"]}
    accounts = {(each["scope"], each["name"]): each for each in lab.get("/api/v1/accounts").json()}
    spent = accounts["tag", study["id"]]["spent"]["device_seconds"]
    assert spent == pytest.approx(study["spend"]["device_seconds"])
    assert spent > 0


def test_its_bank_lists_every_scion(lab: TestClient, folder: Path) -> None:
    listed = lab.get("/api/v1/scions", params={"limit": 100}).json()["scions"]
    assert {scion["key"] for scion in listed} >= set(Bank(Storage(str(folder / "storage"))).names())

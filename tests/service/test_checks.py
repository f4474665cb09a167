"""A check of the whole lab is a job: begun at once, its progress and findings read, its death seen."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from grafting_core.storage.artifacts import publish
from grafting_core.storage.checksums import with_checksum
from grafting_core.storage.storage import Storage
from service.db.check_tables import CheckRow
from service.db.engine import Database
from service.db.tables import RunRow
from service.domain.check_jobs import ALIVE_SECONDS, Checking, begin, check_view
from service.local_keys import first_key
from service.settings import Settings
from tests.support.api_server import serving
from tests.support.builders import document
from workers.contract import checkpoints_folder

ROUTE = "/api/v1/admin/verify"


def ended(client: TestClient, **asked: Any) -> dict[str, Any]:
    """A check that was begun by this request, once it is over."""
    begun = client.post(ROUTE, json=asked)
    assert begun.status_code == 202
    for _ in range(600):
        found: dict[str, Any] = client.get(begun.headers["Location"]).json()
        if found["state"] != "RUNNING":
            return found
        time.sleep(0.1)
    raise AssertionError(found)


def test_a_fresh_lab_is_sound_and_a_quick_check_says_that_it_is(client: TestClient) -> None:
    client.post("/api/v1/experiments", json=document())
    whole, quick = ended(client), ended(client, quick=True)
    assert (whole["state"], whole["sound"], whole["violations"], whole["quick"]) == ("DONE", True, [], False)
    assert (quick["sound"], quick["quick"]) == (True, True)
    listed = client.get(ROUTE).json()["checks"]
    assert [check["id"] for check in listed] == [quick["id"], whole["id"]]
    assert client.get(f"{ROUTE}/none").status_code == 404


def write_one_of_each(storage: Storage) -> list[str]:
    """Files of every kind that vouches for its content."""
    for kind in ("scions", "models", "references", "evaluations", "profiles/b"):
        publish(storage, f"{kind}/k", "payload.bin", bytes(100), {"key": "k"}, {"report.json": b"{} "})
    paths = ["evaluations/k/chunks/00000000.chunk", "evaluations/k/images/00000000.image"]
    paths += [f"{checkpoints_folder('r')}/s/00000001-a0001.safetensors", "scions/k/progress"]
    for path in paths:
        storage.write_bytes(path, with_checksum(bytes(100)))
    published = [f"{kind}/k/payload.bin" for kind in ("models", "references", "evaluations", "profiles/b")]
    return [*paths, *published, "scions/k/payload.bin", "evaluations/k/report.json", "models/k/card.json"]


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_a_check_reads_what_is_in_files_and_a_quick_one_does_not(
    client: TestClient, settings: Settings, harm: str
) -> None:
    storage = Storage(settings.storage)
    paths = write_one_of_each(storage)
    assert ended(client)["sound"] is True
    for path in paths:
        before = storage.read_bytes(path)
        middle = len(before) // 2
        flipped = bytes([*before[:middle], before[middle] ^ 1, *before[middle + 1 :]])
        storage.write_bytes(path, before[:-1] if harm == "cut" else flipped)
        found = ended(client)
        assert found["sound"] is False
        [wrong] = found["violations"]
        assert wrong["invariant"] == "files-intact"
        assert wrong["text"].startswith(path.rsplit("/", 1)[0])
        assert ended(client, quick=True)["sound"] is True
        storage.write_bytes(path, before)


def test_what_the_database_says_wrong_is_found(client: TestClient, database: Database) -> None:
    run = client.post("/api/v1/experiments", json=document()).json()["run_id"]
    with database.writing() as session:
        session.get_one(RunRow, run).last_event = 9
    found = ended(client, quick=True)
    assert {wrong["invariant"] for wrong in found["violations"]} >= {"events-gapless"}
    assert found["found"] == len(found["violations"])


def test_a_check_is_begun_once_and_seen_to_be_interrupted_when_its_process_dies(
    client: TestClient, database: Database
) -> None:
    with database.writing() as session:
        first, is_new = begin(session, 1000.0, quick=False)
        again, again_new = begin(session, 1000.0 + ALIVE_SECONDS / 2, quick=False)
    assert (is_new, again_new, again.id) == (True, False, first.id)
    with database.reading() as session:
        row = session.get_one(CheckRow, first.id)
        assert check_view(row, 1000.0).state == "RUNNING"
        assert check_view(row, 1001.0 + ALIVE_SECONDS).state == "INTERRUPTED"
    seen = client.get(f"{ROUTE}/{first.id}").json()
    assert (seen["state"], seen["sound"]) == ("INTERRUPTED", None)
    assert ended(client)["id"] != first.id
    with database.reading() as session:
        noted = session.get_one(CheckRow, first.id)
        assert (noted.state, noted.ended_at is not None) == ("INTERRUPTED", True)


def test_a_check_that_cannot_go_on_says_why(database: Database, tmp_path: Path) -> None:
    with database.writing() as session:
        row, _ = begin(session, database.clock(session), quick=False)
    (tmp_path / "storage").write_text("a file where a folder should be")
    storage = Storage(str(tmp_path / "storage"))
    storage.names = lambda folder: (_ for _ in ()).throw(OSError(f"{folder} cannot be read"))  # type: ignore[method-assign]
    Checking(database, storage, row.id, quick=False).run()
    with database.reading() as session:
        found = check_view(session.get_one(CheckRow, row.id), database.clock(session))
    assert (found.state, found.message, found.sound) == ("FAILED", "OSError: scions cannot be read", None)


def test_the_command_waits_with_progress_on_standard_error_alone(
    client: TestClient, settings: Settings
) -> None:
    key = first_key(settings.data_dir)
    environment = {**os.environ, "GRAFTLAB_KEY": key}

    def graft(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "service.cli.main", "admin", "verify", *words],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )

    with serving(settings) as port:
        url = f"http://127.0.0.1:{port}"
        begun = graft("--url", url, "--json")
        whole = graft("--url", url, "--wait", "--json")
        again = graft(json.loads(begun.stdout)["id"], "--url", url, "--wait")
    assert json.loads(whole.stdout)["sound"] is True
    assert (whole.returncode, again.returncode) == (0, 0)
    assert "every invariant holds; every file has its recorded content" in again.stdout

"""What operators look at: figures for Prometheus, and what the doctor says where something is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service.settings import Settings
from tests.support.builders import document


def test_metrics_count_runs_and_requests(client: TestClient) -> None:
    client.post("/api/v1/experiments", json=document())
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }
    assert found["graftlab_runs", "QUEUED"] == 1
    assert found["graftlab_tracking_behind",] == 1
    assert found["graftlab_scheduler_leads",] == 0
    assert found["graftlab_requests_total", "202", "POST"] >= 1


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_strangers_are_told_whether_it_is_ready_but_not_why_and_cause_no_writes(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = client.app.state.probe  # type: ignore[attr-defined]  # starlette's type is wider
    monkeypatch.setattr(probe, "_clock", lambda: 1000.0)
    stranger = TestClient(client.app, raise_server_exceptions=False)
    first = stranger.get("/readyz")
    assert (first.status_code, first.json()["ready"], first.headers["retry-after"]) == (503, False, "2")
    assert first.json()["parts"]["database"] == "ok"
    assert settings.ray_dashboard.rpartition(":")[2] not in first.text
    written = Path(settings.storage) / "ready"
    before = written.stat()
    for asker in (stranger, client, stranger):
        assert asker.get("/readyz").status_code == 503
    assert (written.stat().st_ino, written.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert settings.ray_dashboard in client.get("/readyz").json()["parts"]["ray"]
    wrong = {"Authorization": "Bearer glk_wrong"}
    assert stranger.get("/readyz", headers=wrong).json() == first.json()
    monkeypatch.setattr(probe, "_clock", lambda: 2000.0)
    stranger.get("/readyz")
    assert written.stat().st_mtime_ns > before.st_mtime_ns


def test_the_doctor_says_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "service.cli.main", "doctor", "--json", "--url", "http://127.0.0.1:9"]
    environment = {**os.environ, "GRAFTLAB_HOME": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert "graft up" in found["API"]["remedy"]
    assert {name for name, finding in found.items() if not finding["remedy"]} >= {"Python", "torch", "ray"}

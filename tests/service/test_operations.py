"""What operators look at: figures for Prometheus, and what the doctor says where something is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from tests.builders import document


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


def test_the_doctor_says_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "service.cli.main", "doctor", "--json", "--url", "http://127.0.0.1:9"]
    environment = {**os.environ, "GRAFTLAB_HOME": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert "graft up" in found["API"]["remedy"]
    assert {name for name, finding in found.items() if not finding["remedy"]} >= {"Python", "torch", "ray"}

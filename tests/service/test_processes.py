"""The API as several processes: they start together on an empty lab and look like one from outside."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.credentials import first_key

REQUESTS = 40


@pytest.fixture
def url(tmp_path: Path, database_url: str) -> Iterator[str]:
    """Three processes of the API over an empty database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ours = {"DATABASE_URL": database_url, "DATA_DIR": str(tmp_path), "PORT": port, "API_PROCESSES": "3"}
    environment = os.environ | {f"GRAFTLAB_{name}": value for name, value in ours.items()}
    process = subprocess.Popen([sys.executable, "-m", "service.api"], env=environment)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(30) == 0


def get(address: str, key: str = "") -> httpx.Response:
    """A connection of its own, which any of the processes may take; asked again until somebody listens."""
    for _ in range(600):
        try:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            return httpx.get(address, headers=headers, timeout=60, trust_env=False)
        except httpx.ConnectError:
            time.sleep(0.1)
    raise TimeoutError(address)


def test_processes_that_start_together_know_one_key_and_count_together(url: str, tmp_path: Path) -> None:
    get(f"{url}/healthz")
    key = first_key(tmp_path)
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda _: get(f"{url}/api/v1/runs", key).status_code, range(REQUESTS)))
    assert answers == [200] * REQUESTS
    counted = {
        tuple(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(get(f"{url}/metrics", key).text)
        for sample in family.samples
        if sample.name == "graftlab_requests_total"
    }
    assert counted["200", "GET"] == REQUESTS + 1


def test_many_who_look_for_the_first_key_find_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as callers:
        found = set(callers.map(lambda _: first_key(tmp_path), range(64)))
    assert len(found) == 1
    assert found.pop().startswith("glk_")
    assert [file.name for file in tmp_path.iterdir()] == ["admin-key"]

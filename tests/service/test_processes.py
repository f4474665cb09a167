"""The API as processes: several look like one from outside, and one bears what is done to a process."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen, run

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.lab.ports import Claims, listen
from service.local_keys import first_key
from tests.support.builders import document

pytestmark = pytest.mark.large

REQUESTS = 40
ENDED = (0, -signal.SIGTERM)
"""One process takes the signal again once it has cleaned up, as is the custom; several give 0."""


@contextmanager
def serving(
    data: Path, processes: int = 1, descriptors: int | None = None
) -> Iterator[tuple[str, Popen[bytes]]]:
    """The API over the database that the environment or the data folder names."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ours = {"DATA_DIR": str(data), "PORT": port}
    environment = os.environ | {f"GRAFTLAB_{name}": value for name, value in ours.items()}
    limit = ["prlimit", f"--nofile={descriptors}"] if descriptors else []
    command = [sys.executable, "-m", "service.processes.api", "--workers", str(processes)]
    with Popen([*limit, *command], env=environment) as process:
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()
            assert process.wait(30) in ENDED


def get(address: str, key: str = "") -> httpx.Response:
    """A connection of its own, which any of the processes may take; asked again until somebody answers."""
    for _ in range(600):
        try:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            return httpx.get(address, headers=headers, timeout=60, trust_env=False)
        except httpx.NetworkError:
            time.sleep(0.1)
    raise TimeoutError(address)


def test_processes_that_start_together_know_one_key_and_count_together(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLAB_DATABASE_URL", empty_database_url)
    with serving(tmp_path, processes=3) as (url, _):
        get(f"{url}/healthz")
        key = first_key(tmp_path)
        with ThreadPoolExecutor(8) as callers:
            answers = list(callers.map(lambda _: get(f"{url}/api/v1/runs", key).status_code, range(REQUESTS)))
        assert answers == [200] * REQUESTS
        assert answered(get(f"{url}/metrics", key).text) == REQUESTS + 1


def test_a_client_gets_the_documented_rate_whatever_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLAB_REQUESTS_PER_SECOND", "0.001")
    monkeypatch.setenv("GRAFTLAB_REQUESTS_BURST", "30")
    first_key(tmp_path)
    with serving(tmp_path, processes=3) as (url, _):
        get(f"{url}/healthz")
        headers = {"Authorization": f"Bearer {first_key(tmp_path)}"}
        with httpx.Client(headers=headers, timeout=60, trust_env=False) as client:
            one_line = [client.get(f"{url}/api/v1/whoami").status_code for _ in range(28)]
        many = [get(f"{url}/api/v1/whoami", first_key(tmp_path)).status_code for _ in range(15)]
    # A process that meets a key for the first time counts that one request for its address.
    assert one_line == [200] * 28
    assert many.count(429) >= 15 - 2 - 3


def answered(metrics: str) -> float:
    """How many GETs were answered well, by Prometheus' text."""
    families = text_string_to_metric_families(metrics)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "graftlab_requests_total" and sample.labels == {"method": "GET", "status": "200"}
    )


def test_an_api_out_of_descriptors_answers_again_when_connections_end(tmp_path: Path) -> None:
    with serving(tmp_path, descriptors=64) as (url, process):
        get(f"{url}/healthz")
        port = int(url.rsplit(":", 1)[1])
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        time.sleep(1)
        for connection in idle:
            connection.close()
        assert get(f"{url}/api/v1/runs", first_key(tmp_path)).json()["runs"] == []
        assert process.poll() is None


def test_an_api_told_to_end_closes_its_streams_and_goes(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, process):
        get(f"{url}/healthz")
        key = first_key(tmp_path)
        headers = {"Authorization": f"Bearer {key}"}
        run = httpx.post(
            f"{url}/api/v1/experiments", json=document(), headers=headers, trust_env=False
        ).json()
        events = f"{url}/api/v1/runs/{run['run_id']}/events"
        with httpx.stream("GET", events, headers=headers, trust_env=False, timeout=60) as stream:
            assert next(stream.iter_text())
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) in ENDED


def test_many_who_look_for_the_first_key_find_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as callers:
        found = set(callers.map(lambda _: first_key(tmp_path), range(64)))
    assert len(found) == 1
    assert found.pop().startswith("glk_")
    assert [file.name for file in tmp_path.iterdir()] == ["admin-key"]


def test_a_socket_that_is_handed_over_outlives_the_process_that_serves_it(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0, Claims()) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        given = {"DATA_DIR": str(tmp_path), "LISTEN_FD": str(listening.fileno()), "LAB_ID": "this-start"}
        environment = os.environ | {f"GRAFTLAB_{name}": value for name, value in given.items()}
        for _ in range(2):
            command = [sys.executable, "-P", "-m", "service.processes.api"]
            with Popen(command, env=environment, pass_fds=[listening.fileno()]) as process:
                # Nobody serves yet: the caller waits, and is not turned away.
                assert httpx.get(f"{url}/healthz", timeout=60, trust_env=False).json()["lab"] == "this-start"
                process.kill()


@pytest.mark.parametrize(
    "part", [f"service.processes.{name}" for name in ("api", "scheduler", "studies", "tracking")]
)
def test_a_part_that_cannot_start_says_why_in_one_line(tmp_path: Path, part: str) -> None:
    (tmp_path / "graftlab.db").write_bytes(b"no database at all " * 100)
    environment = os.environ | {"GRAFTLAB_DATA_DIR": str(tmp_path)}
    told = run([sys.executable, "-m", part], env=environment, capture_output=True, text=True, timeout=120)
    assert told.returncode == 1
    (line,) = told.stderr.strip().splitlines()
    assert "cannot start: the database" in json.loads(line)["message"]
    assert "is damaged (file is not a database)" in line

"""The lab's processes get ports that are theirs, and a cluster that did not is started anew."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.cluster import ClusterUnavailable
from service.lab.ports import Claims, NoFreePort, is_address, listen, listeners
from service.lab.supervisor import Supervisor
from service.scheduler.ray_jobs import RayJobs
from service.settings import Settings


@pytest.fixture
def claims() -> Iterator[Claims]:
    made = Claims()
    yield made
    made.close()


@pytest.fixture
def taken(claims: Claims) -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("", claims.claim())) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_is_not_given(taken: int, claims: Claims) -> None:
    assert claims.claim(taken) != taken
    free = claims.claim()
    assert claims.claim(free) == free


def test_a_port_that_one_lab_has_chosen_is_no_other_s(claims: Claims) -> None:
    other, port = Claims(), claims.claim()
    assert other.claim(port) != port
    claims.release(port)
    assert other.claim(port) == port
    other.close()


def test_chosen_ports_are_below_those_that_the_system_gives_away(claims: Claims) -> None:
    with socket.create_server(("", 0)) as server:
        assert max(claims.claim() for _ in range(20)) < server.getsockname()[1]


def test_no_free_port_is_told(monkeypatch: pytest.MonkeyPatch, claims: Claims) -> None:
    def refuse(*_: object) -> None:
        raise OSError("in use")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(NoFreePort, match="none of"):
        claims.claim()


def test_a_socket_that_listens_is_nobody_else_s(taken: int, claims: Claims) -> None:
    with listen("127.0.0.1", taken, claims) as elsewhere:
        port = elsewhere.getsockname()[1]
        assert port != taken
        with listen("127.0.0.1", port, Claims()) as another:
            assert another.getsockname()[1] != port


@pytest.mark.parametrize(("host", "right"), [("127.0.0.1", True), ("0.0.0.0", True), ("203.0.113.9", False)])
def test_addresses_of_other_machines_are_told_apart(host: str, right: bool) -> None:
    assert is_address(host) == right


def test_who_listens_is_found(taken: int) -> None:
    assert [process.pid for process in listeners(taken)] == [os.getpid()]


@pytest.mark.large
@pytest.mark.timeout(300)
def test_a_cluster_whose_job_agent_lost_its_port_is_started_anew(tmp_path: Path, taken: int) -> None:
    lab = Supervisor(tmp_path / "lab", 0, 1)
    try:
        lab.prepare()
        ray = next(part for part in lab.parts if part.name == "ray")
        ray.command = [word.replace(str(lab.agent_port), str(taken)) for word in ray.command]
        lab.agent_port = taken
        lab.start()
        lab.wait_ready(200)
        assert lab.agent_port != taken
        assert ray.restarts >= 1
        RayJobs(Settings(**_told(lab))).submit("probe", f"{sys.executable} -c 0")
    finally:
        lab.stop()


def _told(lab: Supervisor) -> dict[str, str]:
    told = lab.environment("test")
    return {
        "data_dir": told["GRAFTLAB_DATA_DIR"],
        "ray_dashboard": told["GRAFTLAB_RAY_DASHBOARD"],
        "ray_token_file": told["GRAFTLAB_RAY_TOKEN_FILE"],
    }


def test_a_cluster_that_hangs_is_waited_for_once(tmp_path: Path, taken: int) -> None:
    """Its port takes connections and answers nothing."""
    ray = RayJobs(Settings(data_dir=tmp_path, ray_dashboard=f"http://127.0.0.1:{taken}"))
    ray._http.timeout = httpx.Timeout(0.2)
    with pytest.raises(ClusterUnavailable, match="ReadTimeout"):
        ray.running()
    with pytest.raises(ClusterUnavailable, match="a moment ago"):
        ray.status("job")

"""The lab's processes get ports that are theirs, and a cluster that did not is started anew."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.cli import supervisor as supervising
from service.cli.ports import NoFreePort, free_port, listeners
from service.cli.supervisor import Supervisor
from service.scheduler.ray_jobs import RayJobs, RayUnavailable
from service.settings import Settings


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("", free_port())) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_is_not_given(taken: int) -> None:
    assert free_port(taken) != taken
    free = free_port()
    assert free_port(free) == free


def test_chosen_ports_are_below_those_that_the_system_gives_away() -> None:
    with socket.create_server(("", 0)) as server:
        assert max(free_port() for _ in range(20)) < server.getsockname()[1]


def test_no_free_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("in use")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(NoFreePort, match="none of"):
        free_port()


def test_who_listens_is_found(taken: int) -> None:
    assert [process.pid for process in listeners(taken)] == [os.getpid()]


@pytest.mark.timeout(300)
def test_a_cluster_whose_job_agent_lost_its_port_is_started_anew(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "AGENT_SECONDS", 25.0)
    lab = Supervisor(tmp_path / "lab", 0, 1)
    ray = next(part for part in lab.parts if part.name == "ray")
    ray.command = [word.replace(str(lab.agent_port), str(taken)) for word in ray.command]
    lab.agent_port = taken
    try:
        lab.start()
        lab.wait_ready(200)
        assert lab.agent_port != taken
        assert ray.restarts >= 1
        RayJobs(Settings(**_told(lab))).submit("probe", "true")
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
    with pytest.raises(RayUnavailable, match="ReadTimeout"):
        ray.running()
    with pytest.raises(RayUnavailable, match="a moment ago"):
        ray.status("job")

"""What the scheduler relies on in a cluster holds for the fakes of the tests and for Ray itself."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest

from service.cluster import FINISHED, Cluster, ClusterUnavailable
from service.lab.supervisor import Supervisor
from service.scheduler.ray_jobs import RayJobs
from service.settings import Settings
from tests.support.fakes import FakeCluster, FolderCluster

JOB = """
import sys, time
from pathlib import Path
started, end = map(Path, sys.argv[1:])
with started.open("a") as file:
    file.write("started\\n")
while not end.exists():
    time.sleep(0.05)
sys.exit(end.read_text() != "SUCCEEDED")
"""
"""Notes that it has started, then waits to be told how to end."""
RAY_SECONDS = 200.0
ON_RAY = (pytest.mark.large, pytest.mark.timeout(400))


class Lab(Protocol):
    """A cluster, and a hand on the jobs that it carries out."""

    cluster: Cluster

    def submit(self, job: str) -> None: ...

    def end(self, job: str, state: str) -> None:
        """Let the job end by itself, as SUCCEEDED or FAILED."""

    def starts(self, job: str) -> int:
        """How often it was started."""


class FakeLab:
    """The fakes start nothing: a job is what their table says of it."""

    def __init__(self, cluster: FakeCluster | FolderCluster) -> None:
        self.cluster, self.end = cluster, cluster.end

    def submit(self, job: str) -> None:
        self.cluster.submit(job, "true")

    def starts(self, job: str) -> int:
        return 0 if self.cluster.status(job) is None else 1


class RayLab:
    """Jobs that wait for a file."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self._folder = cluster, folder

    def submit(self, job: str) -> None:
        files = (str(self._folder / f"{job}.{name}") for name in ("started", "end"))
        self.cluster.submit(job, shlex.join([sys.executable, "-c", JOB, *files]))

    def end(self, job: str, state: str) -> None:
        until(lambda: self.starts(job))
        unfinished = self._folder / f"{job}.unfinished"
        unfinished.write_text(state)
        unfinished.rename(self._folder / f"{job}.end")

    def starts(self, job: str) -> int:
        with suppress(FileNotFoundError):
            return len((self._folder / f"{job}.started").read_text().splitlines())
        return 0


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayJobs]:
    """Ray as `graft up` starts it, without the other parts of a lab."""
    lab = Supervisor(tmp_path_factory.mktemp("ray") / "lab", 0, 2)
    try:
        lab.prepare()
        lab.parts = [part for part in lab.parts if part.name == "ray"]
        lab.start()
        told = lab.environment("test")
        cluster = RayJobs(
            Settings(
                data_dir=lab.folder,
                ray_dashboard=told["GRAFTLAB_RAY_DASHBOARD"],
                ray_token_file=Path(told["GRAFTLAB_RAY_TOKEN_FILE"]),
            )
        )
        until(lambda: _takes_jobs(lab, cluster), RAY_SECONDS)
        yield cluster
    finally:
        lab.stop()


def _takes_jobs(lab: Supervisor, cluster: RayJobs) -> bool:
    lab.reconcile()
    with suppress(ClusterUnavailable):
        return lab.agent_listens and cluster.running() == []
    return False


@pytest.fixture(params=["memory", "folder", pytest.param("ray", marks=ON_RAY)])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Lab:
    if request.param == "ray":
        return RayLab(request.getfixturevalue("ray_cluster"), tmp_path)
    return FakeLab(FakeCluster() if request.param == "memory" else FolderCluster(tmp_path / "jobs"))


@pytest.fixture
def job(request: pytest.FixtureRequest) -> str:
    """A name that no other test has."""
    return f"run-{request.node.name.replace('_', '').partition('[')[0]}-1"


def until(done: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_an_unknown_job_has_no_status_and_can_be_stopped(lab: Lab, job: str) -> None:
    lab.cluster.stop(job)
    assert lab.cluster.status(job) is None
    assert job not in lab.cluster.running()


def test_a_submitted_job_runs_until_it_ends(lab: Lab, job: str) -> None:
    lab.submit(job)
    assert lab.cluster.status(job) in ("PENDING", "RUNNING")
    assert job in lab.cluster.running()
    until(lambda: lab.starts(job) == 1)
    lab.end(job, "SUCCEEDED")
    until(lambda: lab.cluster.status(job) == "SUCCEEDED")
    assert job not in lab.cluster.running()


def test_a_job_that_fails_says_so(lab: Lab, job: str) -> None:
    lab.submit(job)
    lab.end(job, "FAILED")
    until(lambda: lab.cluster.status(job) == "FAILED")
    assert job not in lab.cluster.running()


def test_a_second_submit_of_a_name_starts_nothing_during_the_job_or_after_it(lab: Lab, job: str) -> None:
    lab.submit(job)
    lab.submit(job)
    assert lab.cluster.running().count(job) == 1
    lab.end(job, "SUCCEEDED")
    until(lambda: lab.cluster.status(job) == "SUCCEEDED")
    lab.submit(job)
    assert lab.cluster.status(job) == "SUCCEEDED"
    assert job not in lab.cluster.running()
    assert lab.starts(job) == 1


def test_a_stopped_job_ends_as_stopped_and_a_second_stop_changes_nothing(lab: Lab, job: str) -> None:
    lab.submit(job)
    until(lambda: lab.starts(job) == 1)
    lab.cluster.stop(job)
    until(lambda: lab.cluster.status(job) == "STOPPED")
    assert job not in lab.cluster.running()
    lab.cluster.stop(job)
    assert lab.cluster.status(job) == "STOPPED"


def test_stopping_a_job_that_has_ended_leaves_it_as_it_ended(lab: Lab, job: str) -> None:
    lab.submit(job)
    lab.end(job, "SUCCEEDED")
    until(lambda: lab.cluster.status(job) in FINISHED)
    lab.cluster.stop(job)
    assert lab.cluster.status(job) == "SUCCEEDED"


def test_jobs_are_told_apart(lab: Lab, job: str) -> None:
    other = f"{job}0"
    lab.submit(job)
    lab.submit(other)
    assert {job, other} <= set(lab.cluster.running())
    until(lambda: lab.starts(job))
    lab.cluster.stop(job)
    until(lambda: lab.cluster.status(job) == "STOPPED")
    assert lab.cluster.status(other) in ("PENDING", "RUNNING")
    lab.cluster.stop(other)
    until(lambda: lab.cluster.status(other) == "STOPPED")

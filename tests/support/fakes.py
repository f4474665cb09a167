"""Clusters without Ray: job tables whose states the test sets."""

from pathlib import Path

from grafting_core.storage.failpoints import failpoint
from service.cluster import FINISHED


class FakeCluster:
    """A job table in memory; `running` and `status` return the states that the test has set."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.stopped: list[str] = []

    def submit(self, job: str, entrypoint: str) -> None:
        self.jobs.setdefault(job, "RUNNING")

    def status(self, job: str) -> str | None:
        return self.jobs.get(job)

    def running(self) -> list[str]:
        return [job for job, status in self.jobs.items() if status not in FINISHED]

    def stop(self, job: str) -> None:
        self.stopped.append(job)
        if self.status(job) not in {None, *FINISHED}:
            self.jobs[job] = "STOPPED"

    def end(self, job: str, state: str) -> None:
        self.jobs[job] = state


class FolderCluster:
    """A job table in files, one per job, that survives the submitting process, like Ray's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def submit(self, job: str, entrypoint: str) -> None:
        failpoint("ray/submit/before")
        if self.status(job) is None:
            (self._folder / job).write_text("RUNNING")
        failpoint("ray/submit/after")

    def status(self, job: str) -> str | None:
        path = self._folder / job
        return path.read_text() if path.exists() else None

    def running(self) -> list[str]:
        return [path.name for path in self._folder.iterdir() if path.read_text() not in FINISHED]

    def stop(self, job: str) -> None:
        failpoint("ray/stop")
        if self.status(job) not in {None, *FINISHED}:
            (self._folder / job).write_text("STOPPED")

    def forget(self, job: str) -> None:
        """Forget a job, like a cluster that was restarted."""
        (self._folder / job).unlink()

    def end(self, job: str, state: str) -> None:
        (self._folder / job).write_text(state)

"""What the scheduler asks of the cluster that carries attempts out."""

from typing import Protocol

FINISHED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
"""States in which a job has ended; the others are PENDING and RUNNING."""


class ClusterUnavailable(Exception):
    """The cluster does not answer, or not as it should; the same call may succeed later."""


class Cluster(Protocol):
    """Jobs under names that the caller chooses. Every method may raise ClusterUnavailable."""

    def submit(self, job: str, entrypoint: str) -> None:
        """Start the shell command `entrypoint` under this name; nothing happens where the name is taken."""

    def status(self, job: str) -> str | None:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; None where the cluster knows no such job."""

    def running(self) -> list[str]:
        """Names of all jobs that have not ended, those of others included."""

    def stop(self, job: str) -> None:
        """Ask that the job ends; it may take some seconds. No error where it has ended or is unknown."""

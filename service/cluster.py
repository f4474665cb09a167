"""Protocol of the cluster that runs the attempts."""

from typing import Protocol

FINISHED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
"""States of a job that has ended; the others are PENDING and RUNNING."""


class ClusterUnavailable(Exception):
    """The cluster does not answer, or not correctly; the same call may succeed later."""


class Cluster(Protocol):
    """Jobs under names that the caller chooses. Every method may raise ClusterUnavailable."""

    def submit(self, job: str, entrypoint: str) -> None:
        """Start the shell command `entrypoint` under this name; if the name exists, nothing happens."""

    def status(self, job: str) -> str | None:
        """Return PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; None if the cluster knows no such job."""

    def running(self) -> list[str]:
        """Return the names of all unfinished jobs, including those of others."""

    def stop(self, job: str) -> None:
        """Request the end of the job, which may take seconds. No error if it has ended or is unknown."""

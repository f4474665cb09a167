"""Ray's Jobs API over HTTP; the only connection of the control plane to Ray."""

import time
from typing import TypeVar

import httpx

from grafting_core.storage.failpoints import failpoint
from service.cluster import FINISHED, ClusterUnavailable
from service.settings import Settings

SILENT_SECONDS = 5.0
"""After a timeout no call is tried for this long: each would wait as long as the first."""
T = TypeVar("T", dict[str, object], list[object])


class RayJobs:
    """Implements `Cluster`. Every method raises ClusterUnavailable if Ray does not answer correctly."""

    def __init__(self, settings: Settings) -> None:
        token = settings.ray_token()
        self._http = httpx.Client(
            base_url=settings.ray_dashboard,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=10.0,
            trust_env=False,
        )
        self._silent_until = 0.0

    def submit(self, job: str, entrypoint: str) -> None:
        """Start `entrypoint` under this id; submitting the same id again changes nothing."""
        # The driver only waits; the CPUs of a run are those of its worker group.
        body = {"submission_id": job, "entrypoint": entrypoint, "entrypoint_num_cpus": 0}
        failpoint("ray/submit/before")
        answer = self._ask("POST", "/api/jobs/", body)
        failpoint("ray/submit/after")
        if answer.status_code >= 400 and "already exists" not in answer.text:
            raise ClusterUnavailable(
                f"submitting {job} gave status {answer.status_code}: {answer.text[-300:]}"
            )

    def status(self, job: str) -> str | None:
        """Return PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED, or None if Ray knows no such job."""
        answer = self._ask("GET", f"/api/jobs/{job}")
        if answer.status_code == 404:
            return None
        if answer.status_code >= 400:
            raise ClusterUnavailable(f"the status of {job} was answered with status {answer.status_code}")
        return str(_document(answer, dict).get("status"))

    def running(self) -> list[str]:
        """Return the submission ids of all unfinished jobs."""
        answer = self._ask("GET", "/api/jobs/")
        if answer.status_code >= 400:
            raise ClusterUnavailable(f"the list of jobs was answered with status {answer.status_code}")
        jobs = [job for job in _document(answer, list) if isinstance(job, dict)]
        unfinished = (job for job in jobs if job.get("status") not in FINISHED)
        return [str(job["submission_id"]) for job in unfinished if job.get("submission_id")]

    def stop(self, job: str) -> None:
        """Request Ray to end the job; no error if it has ended or is unknown."""
        failpoint("ray/stop")
        self._ask("POST", f"/api/jobs/{job}/stop")

    def _ask(self, method: str, path: str, body: dict[str, object] | None = None) -> httpx.Response:
        if time.monotonic() < self._silent_until:
            raise ClusterUnavailable(f"{self._http.base_url} did not answer a moment ago")
        try:
            return self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            if isinstance(error, httpx.TimeoutException):
                self._silent_until = time.monotonic() + SILENT_SECONDS
            raise ClusterUnavailable(
                f"{self._http.base_url} does not answer ({type(error).__name__})"
            ) from error


def _document(answer: httpx.Response, kind: type[T]) -> T:
    """Parse an answer. Raises ClusterUnavailable if it has another form, as from another program."""
    try:
        document = answer.json()
    except ValueError as error:
        raise ClusterUnavailable(f"{answer.url} does not answer with JSON") from error
    if not isinstance(document, kind):
        raise ClusterUnavailable(
            f"{answer.url} answers with a {type(document).__name__}, not a {kind.__name__}"
        )
    return document

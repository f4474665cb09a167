"""A typed client of the REST API: `GraftlabClient("http://127.0.0.1:8000")`."""

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from grafting_core.specs.profile import BackboneProfile
from grafting_core.specs.scions import ScionCard
from service.requesting import ApiProblem, CannotBeSent, LabUnreachable, Transport, pages
from service.schemas.bank import Cleared, ScionPage, ScionView, Verified
from service.schemas.checks import CheckPage, CheckView
from service.schemas.keys import KeyMade, KeyView, LoginLink, Whoami
from service.schemas.leaderboard import Leaderboard, LeaderboardGroup
from service.schemas.registry import RegisteredDetail, RegisteredView, Removed, view_of
from service.schemas.rung_agreement import LatencyTable
from service.schemas.runs import (
    TERMINAL,
    AccountView,
    ActionResult,
    BackboneView,
    Collected,
    OperatorView,
    PlanAnswer,
    QueueView,
    RunDetail,
    RunEvent,
    RunPage,
    RunView,
    SubmitAnswer,
    TrackingRebuilt,
    TrackingState,
)
from service.schemas.studies import StudyAnswer, StudyDetail, StudyPage, StudyView
from service.schemas.webhooks import DeliveryPage, DeliveryView, WebhookMade, WebhookView

__all__ = ["ApiProblem", "CannotBeSent", "GraftlabClient", "LabUnreachable"]


class GraftlabClient(Transport):
    """Blocking client. A request that is safe to repeat is repeated if no answer came."""

    def plan(self, document: Any) -> PlanAnswer:
        """Plan a design: cost and stages; nothing is stored. Raises ApiProblem."""
        return self._parse(PlanAnswer, self._ask("POST", "/experiments/plan", again=True, json=document))

    def submit(self, document: Any, idempotency_key: str | None = None, **options: Any) -> SubmitAnswer:
        """Queue a run of this design; a lost answer cannot make a second run. Raises ApiProblem.

        Options: `priority` (higher runs first), `tag` (a label whose account is charged too).
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        answer = self._ask("POST", "/experiments", json=document, headers=headers, params=options)
        return self._parse(SubmitAnswer, answer)

    def analyze(self, document: Any, idempotency_key: str | None = None) -> SubmitAnswer:
        """Queue a measurement of a backbone (`backbone`, `bands`, `samples`...). Raises ApiProblem."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._parse(SubmitAnswer, self._ask("POST", "/analyses", json=document, headers=headers))

    def export(self, document: Any, idempotency_key: str | None = None) -> SubmitAnswer:
        """Queue an export of a finished run (`run`, `licence`). Raises ApiProblem."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._parse(SubmitAnswer, self._ask("POST", "/exports", json=document, headers=headers))

    def profile(self, backbone: str) -> BackboneProfile:
        """Return the newest profile of a backbone. Raises ApiProblem if none was measured."""
        return self._parse(BackboneProfile, self._ask("GET", f"/backbones/{backbone}/profile"))

    def latencies(self, kind: str | None = None, tokens: int | None = None) -> LatencyTable:
        """Return the latency table, filtered by kind and number of tokens if given."""
        params = {name: value for name, value in (("kind", kind), ("tokens", tokens)) if value is not None}
        return self._parse(LatencyTable, self._ask("GET", "/latencies", params=params))

    def runs(self, limit: int = 50, cursor: str | None = None, prefix: str | None = None) -> RunPage:
        """Return a page of runs, newest first."""
        filters = {"limit": limit, "cursor": cursor, "prefix": prefix}
        params = {name: value for name, value in filters.items() if value is not None}
        return self._parse(RunPage, self._ask("GET", "/runs", params=params))

    def all_runs(self, page: int = 200) -> Iterator[RunView]:
        """Yield every run, newest first, requested `page` at a time."""
        for answer in pages(lambda cursor: self.runs(page, cursor)):
            yield from answer.runs

    def run(self, run_id: str) -> RunDetail:
        return self._parse(RunDetail, self._ask("GET", f"/runs/{run_id}"))

    def cancel(self, run_id: str) -> RunDetail:
        """Cancel a run after its next checkpoint; `act` does the other actions."""
        return self._parse(RunDetail, self._ask("POST", f"/runs/{run_id}/cancel", again=True))

    def act(self, action: str, run_ids: list[str], **more: Any) -> list[ActionResult]:
        """Apply an action to runs: pause, resume, cancel, kill, retry, extend (device_seconds=), priority
        (priority=).
        """
        body = {"action": action, "runs": run_ids, **more}
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        answer = self._ask("POST", "/actions", json=body, headers=headers)
        return self._parse_list(ActionResult, answer)

    def queue(self, limit: int = 50, run: str | None = None) -> QueueView:
        """Return the queue in order, with what each run waits for."""
        params = {"limit": limit, **({"run": run} if run else {})}
        return self._parse(QueueView, self._ask("GET", "/queue", params=params))

    def accounts(self) -> list[AccountView]:
        return self._parse_list(AccountView, self._ask("GET", "/accounts"))

    def set_limits(
        self, scope: str, name: str, budget: dict[str, Any], quotas: dict[str, int | None] | None = None
    ) -> AccountView:
        """Replace the limits of an account; None means unlimited."""
        body = {"budget": budget, **(quotas or {})}
        return self._parse(AccountView, self._ask("PUT", f"/accounts/{scope}/{name}", json=body))

    def change_limits(
        self, scope: str, name: str, budget: dict[str, Any], quotas: dict[str, int | None] | None = None
    ) -> AccountView:
        """Change the given limits; None removes one, the others stay."""
        body = {**({"budget": budget} if budget else {}), **(quotas or {})}
        return self._parse(AccountView, self._ask("PATCH", f"/accounts/{scope}/{name}", json=body))

    def log(self, run_id: str, attempt: int | None = None) -> str:
        """Return the end of an attempt's output."""
        return self._ask("GET", f"/runs/{run_id}/log", params={"attempt": attempt} if attempt else {}).text

    def artifact(self, run_id: str, stage: str, name: str) -> bytes:
        return self._ask("GET", f"/runs/{run_id}/artifacts/{stage}/{name}").content

    def save_artifact(self, run_id: str, stage: str, name: str, path: Path) -> None:
        """Write an artifact of any size to a file, completely or not at all. Raises ApiProblem, OSError."""
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                for piece in self._pieces(f"/runs/{run_id}/artifacts/{stage}/{name}"):
                    file.write(piece)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def continue_artifact(self, run_id: str, stage: str, name: str, path: Path) -> None:
        """Write an artifact to a file that may hold its beginning.

        Raises ApiProblem, OSError, LabUnreachable. What has arrived when the connection breaks stays, so that
        another call goes on with it.
        """
        with path.open("ab") as file:
            self._continue(f"/runs/{run_id}/artifacts/{stage}/{name}", file)

    def leaderboard(self, **filters: Any) -> Leaderboard:
        """Return the first rows of every group; `protocol` selects a group by its digest, `cursor` its next
        rows.
        """
        return self._parse(Leaderboard, self._ask("GET", "/leaderboard", params=filters))

    def whole_leaderboard(self) -> Leaderboard:
        """Return all rows of every group."""
        board = self.leaderboard(limit=200)
        return board.model_copy(update={"groups": [self._whole_group(group) for group in board.groups]})

    def _whole_group(self, group: LeaderboardGroup) -> LeaderboardGroup:
        rows, cursor = list(group.rows), group.next_cursor
        while cursor is not None:
            groups = self.leaderboard(limit=200, protocol=group.protocol_digest, cursor=cursor).groups
            further = next((other for other in groups if other.metric == group.metric), None)
            rows += further.rows if further else []
            cursor = further.next_cursor if further else None
        return group.model_copy(update={"rows": rows, "next_cursor": None})

    def operators(self) -> list[OperatorView]:
        return self._parse_list(OperatorView, self._ask("GET", "/operators"))

    def backbones(self) -> list[BackboneView]:
        return self._parse_list(BackboneView, self._ask("GET", "/backbones"))

    def register(self, kind: str, document: Any, idempotency_key: str | None = None) -> SubmitAnswer:
        """Queue a run that registers something of a kind: backbones, datasets or features."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._parse(SubmitAnswer, self._ask("POST", f"/{kind}", json=document, headers=headers))

    def all_registered(self, kind: str) -> list[RegisteredView]:
        """Everything of a kind: what ships with packages, then what was registered."""
        if kind == "backbones":
            return [view_of(each) for each in self.backbones()]
        return self._parse_list(RegisteredView, self._ask("GET", f"/{kind}"))

    def registered(self, kind: str, name: str) -> RegisteredDetail:
        """One of them with its card and revisions. Raises ApiProblem where there is none."""
        return self._parse(RegisteredDetail, self._ask("GET", f"/{kind}/{name}"))

    def verify_registered(self, kind: str, name: str, revision: int | None = None) -> SubmitAnswer:
        """Queue a run that reads a revision again, and fails where it is damaged."""
        params = {"revision": revision} if revision else {}
        return self._parse(SubmitAnswer, self._ask("POST", f"/{kind}/{name}/verify", params=params))

    def remove_registered(self, kind: str, name: str, revision: int | None = None) -> Removed:
        """Remove a name, or one of its revisions; refused while work that has not ended needs it."""
        params = {"revision": revision} if revision else {}
        return self._parse(Removed, self._ask("DELETE", f"/{kind}/{name}", params=params))

    def scions(self, limit: int = 50, cursor: str | None = None, **filters: str | None) -> ScionPage:
        """Return a page of the bank in the order of keys; `prefix`, `kind` and `backbone` filter it."""
        query = {"limit": limit, "cursor": cursor, **filters}
        params = {name: value for name, value in query.items() if value is not None}
        return self._parse(ScionPage, self._ask("GET", "/scions", params=params))

    def all_scions(self, page: int = 200, **filters: str | None) -> Iterator[ScionView]:
        """Yield the whole bank in the order of keys, requested `page` at a time."""
        for answer in pages(lambda cursor: self.scions(page, cursor, **filters)):
            yield from answer.scions

    def scion(self, key: str) -> ScionCard:
        return self._parse(ScionCard, self._ask("GET", f"/scions/{key}"))

    def verify_scions(self) -> Verified:
        """Read and verify all scions; damaged ones are moved aside."""
        return self._parse(Verified, self._ask("POST", "/scions:verify", again=True))

    def clear_scions(self, **limits: Any) -> Cleared:
        """Delete scions by `older_than_days` and `max_bytes`; `dry_run` only reports them."""
        return self._parse(Cleared, self._ask("POST", "/scions:gc", json=limits))

    def fill(self, document: Any, idempotency_key: str | None = None) -> SubmitAnswer:
        """Queue one run that distils every operator at every site, ahead of the designs that will use
        them.
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._parse(SubmitAnswer, self._ask("POST", "/scions:fill", json=document, headers=headers))

    def create_study(self, document: Any, idempotency_key: str | None = None) -> StudyAnswer:
        """Start a study; a lost answer cannot start a second one. Raises ApiProblem."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._parse(StudyAnswer, self._ask("POST", "/studies", json=document, headers=headers))

    def studies(self, limit: int = 50, cursor: str | None = None, prefix: str | None = None) -> StudyPage:
        """Return a page of studies, newest first; `prefix` is the beginning of an id."""
        filters = {"limit": limit, "cursor": cursor, "prefix": prefix}
        params = {name: value for name, value in filters.items() if value is not None}
        return self._parse(StudyPage, self._ask("GET", "/studies", params=params))

    def all_studies(self, page: int = 200) -> Iterator[StudyView]:
        """Yield every study, newest first, requested `page` at a time."""
        for answer in pages(lambda cursor: self.studies(page, cursor)):
            yield from answer.studies

    def study(self, study_id: str) -> StudyDetail:
        return self._parse(StudyDetail, self._ask("GET", f"/studies/{study_id}"))

    def change_study(self, study_id: str, action: str) -> StudyDetail:
        """Apply `pause`, `resume` or `stop` to a study."""
        return self._parse(StudyDetail, self._ask("POST", f"/studies/{study_id}/{action}"))

    def extend_study(self, study_id: str, **more: float) -> StudyDetail:
        """Add `trials`, `promote`, `rounds` or `device_seconds` to a study."""
        body = {"version": self.study(study_id).version, **more}
        return self._parse(StudyDetail, self._ask("POST", f"/studies/{study_id}/extend", json=body))

    def best_design(self, study_id: str) -> dict[str, Any]:
        """Return the best finished design as a document to submit."""
        document: dict[str, Any] = self._ask("GET", f"/studies/{study_id}/best").json()
        return document

    def study_report(self, study_id: str, name: str) -> bytes:
        """Return `report.md`, `report.html` or one of the pictures."""
        return self._ask("GET", f"/studies/{study_id}/report/{name}").content

    def make_key(self, owner: str, **rights: Any) -> KeyMade:
        """Make a key (`role`, `sees`, `days`); its secret is only in this answer. Needs an admin's key."""
        return self._parse(KeyMade, self._ask("POST", "/keys", json={"owner": owner, **rights}))

    def keys(self) -> list[KeyView]:
        return self._parse_list(KeyView, self._ask("GET", "/keys"))

    def revoke_key(self, key_id: int) -> KeyView:
        return self._parse(KeyView, self._ask("DELETE", f"/keys/{key_id}"))

    def whoami(self) -> Whoami:
        """Return the owner and rights of this client's key."""
        return self._parse(Whoami, self._ask("GET", "/whoami"))

    def add_webhook(self, url: str, types: list[str] | None = None) -> WebhookMade:
        """Register an address for messages about ended work; the secret is only in this answer. Needs an
        admin's key.
        """
        body = {"url": url, **({"types": types} if types else {})}
        return self._parse(WebhookMade, self._ask("POST", "/webhooks", json=body))

    def webhooks(self) -> list[WebhookView]:
        return self._parse_list(WebhookView, self._ask("GET", "/webhooks"))

    def remove_webhook(self, webhook_id: int) -> WebhookView:
        return self._parse(WebhookView, self._ask("DELETE", f"/webhooks/{webhook_id}"))

    def try_webhook(self, webhook_id: int) -> DeliveryView:
        """Send a test message; `deliveries` shows the outcome."""
        return self._parse(DeliveryView, self._ask("POST", f"/webhooks/{webhook_id}/test"))

    def deliveries(self, webhook_id: int, **filters: Any) -> DeliveryPage:
        """Return a page of deliveries to a webhook, newest first (`limit`, `cursor`, `state`)."""
        params = {name: value for name, value in filters.items() if value is not None}
        return self._parse(
            DeliveryPage, self._ask("GET", f"/webhooks/{webhook_id}/deliveries", params=params)
        )

    def begin_check(self, quick: bool = False) -> CheckView:
        """Start a check of the whole lab, or return the one that is running. Needs an admin's key."""
        return self._parse(CheckView, self._ask("POST", "/admin/verify", json={"quick": quick}))

    def check(self, check_id: str) -> CheckView:
        """Return a check's progress and, once it has ended, its findings."""
        return self._parse(CheckView, self._ask("GET", f"/admin/verify/{check_id}"))

    def checks(self) -> CheckPage:
        """List checks, newest first, without their findings."""
        return self._parse(CheckPage, self._ask("GET", "/admin/verify"))

    def wait_for_check(
        self,
        check_id: str,
        on_progress: Callable[[CheckView], None] = lambda check: None,
        poll_seconds: float = 0.5,
    ) -> CheckView:
        """Return the check once it has ended; `on_progress` is called with it at every poll."""
        while (check := self.check(check_id)).state == "RUNNING":
            on_progress(check)
            time.sleep(poll_seconds)
        return check

    def all_deliveries(self, webhook_id: int, page: int = 200, **filters: Any) -> Iterator[DeliveryView]:
        """Yield every delivery to a webhook, newest first, requested `page` at a time."""
        for answer in pages(lambda cursor: self.deliveries(webhook_id, limit=page, cursor=cursor, **filters)):
            yield from answer.deliveries

    def collect(self, dry_run: bool = False) -> Collected:
        """Delete surplus checkpoints of ended runs, or only list them. Needs an admin's key."""
        return self._parse(Collected, self._ask("POST", "/admin/gc", json={"dry_run": dry_run}))

    def tracking(self) -> TrackingState:
        """Return how far MLflow lags behind the lab. Needs an admin's key."""
        return self._parse(TrackingState, self._ask("GET", "/admin/tracking"))

    def rebuild_tracking(self) -> TrackingRebuilt:
        """Send all runs and studies to MLflow again. Needs an admin's key."""
        return self._parse(TrackingRebuilt, self._ask("POST", "/admin/tracking/rebuild"))

    def login_link(self, to: str = "/") -> str:
        """Return an address that opens a page in a browser once, within ten minutes."""
        link = self._parse(LoginLink, self._ask("POST", "/login-links"))
        return f"{self.url}{link.path}&to={to}"

    def events(self, run_id: str, after: int = 0) -> Iterator[RunEvent]:
        """Yield events as they come, until the run ends; reconnects if the stream breaks."""
        while True:
            try:
                for event in self._stream(run_id, after):
                    after = event.id
                    yield event
            except httpx.TransportError:
                time.sleep(1)
                continue
            if self.run(run_id).state in TERMINAL:
                return

    def _stream(self, run_id: str, after: int) -> Iterator[RunEvent]:
        headers = {"Last-Event-ID": str(after)}
        with self._http.stream("GET", f"/runs/{run_id}/events", headers=headers, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: ") and line != "data: {}":
                    yield RunEvent.model_validate_json(line.removeprefix("data: "))

    def wait(self, run_id: str, poll_seconds: float = 1.0) -> RunDetail:
        """Return the run once it has ended."""
        while (run := self.run(run_id)).state not in TERMINAL:
            time.sleep(poll_seconds)
        return run

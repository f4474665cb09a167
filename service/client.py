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
from service.schemas.rung_agreement import LatencyTable
from service.schemas.runs import (
    TERMINAL,
    AccountView,
    ActionResult,
    BackboneView,
    Collected,
    Leaderboard,
    LeaderboardGroup,
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
    """Blocking calls. What can be asked twice without being done twice is repeated where no answer came."""

    def plan(self, document: Any) -> PlanAnswer:
        """Cost and stages of a design; nothing is stored. Raises ApiProblem."""
        return self._parse(PlanAnswer, self._ask("POST", "/experiments/plan", again=True, json=document))

    def submit(self, document: Any, idempotency_key: str | None = None, **placing: Any) -> SubmitAnswer:
        """Queue a run of this design; a lost answer cannot make a second one. Raises ApiProblem.

        `placing`: priority (higher goes first), study (a label whose account is charged as well).
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        answer = self._ask("POST", "/experiments", json=document, headers=headers, params=placing)
        return self._parse(SubmitAnswer, answer)

    def analyze(self, document: Any, idempotency_key: str | None = None) -> SubmitAnswer:
        """Queue a measurement of a backbone (`backbone`, `bands`, `samples`...). Raises ApiProblem."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._parse(SubmitAnswer, self._ask("POST", "/analyses", json=document, headers=headers))

    def profile(self, backbone: str) -> BackboneProfile:
        """The newest profile of a backbone. Raises ApiProblem where none was measured."""
        return self._parse(BackboneProfile, self._ask("GET", f"/backbones/{backbone}/profile"))

    def latencies(self, kind: str | None = None, tokens: int | None = None) -> LatencyTable:
        """The latency table, of one kind or number of tokens where given."""
        params = {name: value for name, value in (("kind", kind), ("tokens", tokens)) if value is not None}
        return self._parse(LatencyTable, self._ask("GET", "/latencies", params=params))

    def runs(self, limit: int = 50, cursor: str | None = None, prefix: str | None = None) -> RunPage:
        """A page of runs, newest first."""
        asked = {"limit": limit, "cursor": cursor, "prefix": prefix}
        params = {name: value for name, value in asked.items() if value is not None}
        return self._parse(RunPage, self._ask("GET", "/runs", params=params))

    def all_runs(self, page: int = 200) -> Iterator[RunView]:
        """Every run, newest first, asked for `page` at a time."""
        for found in pages(lambda cursor: self.runs(page, cursor)):
            yield from found.runs

    def run(self, run_id: str) -> RunDetail:
        return self._parse(RunDetail, self._ask("GET", f"/runs/{run_id}"))

    def cancel(self, run_id: str) -> RunDetail:
        """After the next checkpoint; `act` knows the other actions."""
        return self._parse(RunDetail, self._ask("POST", f"/runs/{run_id}/cancel", again=True))

    def act(self, action: str, run_ids: list[str], **more: Any) -> list[ActionResult]:
        """Pause, resume, cancel, kill, retry, extend (device_seconds=), priority (priority=)."""
        body = {"action": action, "runs": run_ids, **more}
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        answer = self._ask("POST", "/actions", json=body, headers=headers)
        return self._parse_list(ActionResult, answer)

    def queue(self, limit: int = 50, run: str | None = None) -> QueueView:
        """The queue in order, explained."""
        params = {"limit": limit, **({"run": run} if run else {})}
        return self._parse(QueueView, self._ask("GET", "/queue", params=params))

    def accounts(self) -> list[AccountView]:
        return self._parse_list(AccountView, self._ask("GET", "/accounts"))

    def set_limits(
        self, scope: str, name: str, budget: dict[str, Any], quotas: dict[str, int | None] | None = None
    ) -> AccountView:
        """Replace what an account may use; what is None is unlimited."""
        body = {"budget": budget, **(quotas or {})}
        return self._parse(AccountView, self._ask("PUT", f"/accounts/{scope}/{name}", json=body))

    def change_limits(
        self, scope: str, name: str, budget: dict[str, Any], quotas: dict[str, int | None] | None = None
    ) -> AccountView:
        """Change the limits that are given; None takes one away, the others stay."""
        body = {**({"budget": budget} if budget else {}), **(quotas or {})}
        return self._parse(AccountView, self._ask("PATCH", f"/accounts/{scope}/{name}", json=body))

    def log(self, run_id: str, attempt: int | None = None) -> str:
        """The end of what an attempt printed."""
        return self._ask("GET", f"/runs/{run_id}/log", params={"attempt": attempt} if attempt else {}).text

    def artifact(self, run_id: str, stage: str, name: str) -> bytes:
        return self._ask("GET", f"/runs/{run_id}/artifacts/{stage}/{name}").content

    def save_artifact(self, run_id: str, stage: str, name: str, path: Path) -> None:
        """Write an artifact of any size to a file, whole or not at all. Raises ApiProblem, OSError."""
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                for piece in self._pieces(f"/runs/{run_id}/artifacts/{stage}/{name}"):
                    file.write(piece)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def leaderboard(self, **asked: Any) -> Leaderboard:
        """The first rows of every group; `protocol` names one by its digest, `cursor` asks for more."""
        return self._parse(Leaderboard, self._ask("GET", "/leaderboard", params=asked))

    def whole_leaderboard(self) -> Leaderboard:
        """All rows of every group."""
        board = self.leaderboard(limit=200)
        return board.model_copy(update={"groups": [self._whole_group(group) for group in board.groups]})

    def _whole_group(self, group: LeaderboardGroup) -> LeaderboardGroup:
        rows, cursor = list(group.rows), group.next_cursor
        while cursor is not None:
            found = self.leaderboard(limit=200, protocol=group.protocol_digest, cursor=cursor).groups
            further = next((each for each in found if each.metric == group.metric), None)
            rows += further.rows if further else []
            cursor = further.next_cursor if further else None
        return group.model_copy(update={"rows": rows, "next_cursor": None})

    def operators(self) -> list[OperatorView]:
        return self._parse_list(OperatorView, self._ask("GET", "/operators"))

    def backbones(self) -> list[BackboneView]:
        return self._parse_list(BackboneView, self._ask("GET", "/backbones"))

    def scions(self, limit: int = 50, cursor: str | None = None, **filters: str | None) -> ScionPage:
        """A page of the bank in the order of keys; `prefix`, `kind` and `backbone` narrow it."""
        asked = {"limit": limit, "cursor": cursor, **filters}
        params = {name: value for name, value in asked.items() if value is not None}
        return self._parse(ScionPage, self._ask("GET", "/scions", params=params))

    def all_scions(self, page: int = 200, **filters: str | None) -> Iterator[ScionView]:
        """The whole bank in the order of keys, asked for `page` at a time."""
        for found in pages(lambda cursor: self.scions(page, cursor, **filters)):
            yield from found.scions

    def scion(self, key: str) -> ScionCard:
        return self._parse(ScionCard, self._ask("GET", f"/scions/{key}"))

    def verify_scions(self) -> Verified:
        """Read all of them; the damaged are set aside."""
        return self._parse(Verified, self._ask("POST", "/scions:verify", again=True))

    def clear_scions(self, **limits: Any) -> Cleared:
        """Free by `older_than_days` and `max_bytes`; `dry_run` only says what would go."""
        return self._parse(Cleared, self._ask("POST", "/scions:gc", json=limits))

    def fill(self, document: Any, idempotency_key: str | None = None) -> SubmitAnswer:
        """Queue one pass that distils sites times operators ahead."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._parse(SubmitAnswer, self._ask("POST", "/scions:fill", json=document, headers=headers))

    def create_study(self, document: Any, idempotency_key: str | None = None) -> StudyAnswer:
        """Begin a study; a lost answer cannot begin a second one. Raises ApiProblem."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._parse(StudyAnswer, self._ask("POST", "/studies", json=document, headers=headers))

    def studies(self, limit: int = 50, cursor: str | None = None, prefix: str | None = None) -> StudyPage:
        """A page of studies, newest first; `prefix` is how ids begin."""
        asked = {"limit": limit, "cursor": cursor, "prefix": prefix}
        params = {name: value for name, value in asked.items() if value is not None}
        return self._parse(StudyPage, self._ask("GET", "/studies", params=params))

    def all_studies(self, page: int = 200) -> Iterator[StudyView]:
        """Every study, newest first, asked for `page` at a time."""
        for found in pages(lambda cursor: self.studies(page, cursor)):
            yield from found.studies

    def study(self, study_id: str) -> StudyDetail:
        return self._parse(StudyDetail, self._ask("GET", f"/studies/{study_id}"))

    def change_study(self, study_id: str, action: str) -> StudyDetail:
        """`pause`, `resume` or `stop`."""
        return self._parse(StudyDetail, self._ask("POST", f"/studies/{study_id}/{action}"))

    def extend_study(self, study_id: str, **more: float) -> StudyDetail:
        """More `trials`, `promote`, `rounds` or `device_seconds`."""
        asked = {"version": self.study(study_id).version, **more}
        return self._parse(StudyDetail, self._ask("POST", f"/studies/{study_id}/extend", json=asked))

    def best_design(self, study_id: str) -> dict[str, Any]:
        """The best finished design as a document to submit."""
        document: dict[str, Any] = self._ask("GET", f"/studies/{study_id}/best").json()
        return document

    def study_report(self, study_id: str, name: str) -> bytes:
        """`report.md`, `report.html` or one of the pictures."""
        return self._ask("GET", f"/studies/{study_id}/report/{name}").content

    def make_key(self, owner: str, **rights: Any) -> KeyMade:
        """A new key (`role`, `sees`, `days`); its secret is shown this once. Takes an admin's key."""
        return self._parse(KeyMade, self._ask("POST", "/keys", json={"owner": owner, **rights}))

    def keys(self) -> list[KeyView]:
        return self._parse_list(KeyView, self._ask("GET", "/keys"))

    def revoke_key(self, key_id: int) -> KeyView:
        return self._parse(KeyView, self._ask("DELETE", f"/keys/{key_id}"))

    def whoami(self) -> Whoami:
        """Whom this client's key stands for."""
        return self._parse(Whoami, self._ask("GET", "/whoami"))

    def add_webhook(self, url: str, types: list[str] | None = None) -> WebhookMade:
        """Have an address told of what ends; the secret is shown this once. Takes an admin's key."""
        body = {"url": url, **({"types": types} if types else {})}
        return self._parse(WebhookMade, self._ask("POST", "/webhooks", json=body))

    def webhooks(self) -> list[WebhookView]:
        return self._parse_list(WebhookView, self._ask("GET", "/webhooks"))

    def remove_webhook(self, webhook_id: int) -> WebhookView:
        return self._parse(WebhookView, self._ask("DELETE", f"/webhooks/{webhook_id}"))

    def try_webhook(self, webhook_id: int) -> DeliveryView:
        """Send a message that tells of nothing; `deliveries` shows what came of it."""
        return self._parse(DeliveryView, self._ask("POST", f"/webhooks/{webhook_id}/test"))

    def deliveries(self, webhook_id: int, **asked: Any) -> DeliveryPage:
        """A page of what a webhook was told, newest first (`limit`, `cursor`, `state`)."""
        params = {name: value for name, value in asked.items() if value is not None}
        return self._parse(
            DeliveryPage, self._ask("GET", f"/webhooks/{webhook_id}/deliveries", params=params)
        )

    def begin_check(self, quick: bool = False) -> CheckView:
        """Begin to check the whole lab, or find the check that is under way. Takes an admin's key."""
        return self._parse(CheckView, self._ask("POST", "/admin/verify", json={"quick": quick}))

    def check(self, check_id: str) -> CheckView:
        """How far it is and what it has found."""
        return self._parse(CheckView, self._ask("GET", f"/admin/verify/{check_id}"))

    def checks(self) -> CheckPage:
        """Newest first, without what they have found."""
        return self._parse(CheckPage, self._ask("GET", "/admin/verify"))

    def wait_for_check(
        self, check_id: str, tell: Callable[[CheckView], None] = lambda check: None, poll_seconds: float = 0.5
    ) -> CheckView:
        """Return the check once it has ended; `tell` is called with its progress."""
        while (check := self.check(check_id)).state == "RUNNING":
            tell(check)
            time.sleep(poll_seconds)
        return check

    def all_deliveries(self, webhook_id: int, page: int = 200, **asked: Any) -> Iterator[DeliveryView]:
        """Everything that a webhook was told, newest first, asked for `page` at a time."""
        for found in pages(lambda cursor: self.deliveries(webhook_id, limit=page, cursor=cursor, **asked)):
            yield from found.deliveries

    def collect(self, dry_run: bool = False) -> Collected:
        """Delete checkpoints that ended runs left, or say what would be deleted. Needs an admin's key."""
        return self._parse(Collected, self._ask("POST", "/admin/gc", json={"dry_run": dry_run}))

    def tracking(self) -> TrackingState:
        """How far MLflow is behind. Takes an admin's key."""
        return self._parse(TrackingState, self._ask("GET", "/admin/tracking"))

    def rebuild_tracking(self) -> TrackingRebuilt:
        """Have all runs and studies projected to MLflow anew. Takes an admin's key."""
        return self._parse(TrackingRebuilt, self._ask("POST", "/admin/tracking/rebuild"))

    def login_link(self, to: str = "/") -> str:
        """An address that opens a page in a browser, once, within ten minutes."""
        link = self._parse(LoginLink, self._ask("POST", "/login-links"))
        return f"{self.url}{link.path}&to={to}"

    def events(self, run_id: str, after: int = 0) -> Iterator[RunEvent]:
        """Events as they come, to the run's end; reconnects where the stream breaks."""
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
        """The run once it has ended."""
        while (run := self.run(run_id)).state not in TERMINAL:
            time.sleep(poll_seconds)
        return run

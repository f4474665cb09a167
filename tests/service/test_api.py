# ruff: noqa: E501 - the tables read best with a case a line
"""The API does what it says, refuses what is wrong with its place, and stores nothing then."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from service.client import ApiProblem, GraftlabClient
from service.db.tables import ExperimentRow, RunRow, StageRow
from service.domain.run_lifecycle import transition
from tests.support.builders import document
from workers.contract import StageReport

SUBMIT = "/api/v1/experiments"


def submit(client: TestClient, key: str | None = None, **changes: Any) -> str:
    answer = client.post(SUBMIT, json=document(**changes), headers={"Idempotency-Key": key} if key else {})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["run_id"])


def stored(client: TestClient) -> int:
    with client.app.state.lab.database.reading() as session:  # type: ignore[attr-defined]  # starlette's type is wider
        return int(session.scalar(select(func.count()).select_from(ExperimentRow)) or 0)


def test_a_submission_becomes_a_queued_run(client: TestClient) -> None:
    run = client.get(f"/api/v1/runs/{submit(client)}").json()
    assert (run["state"], run["attempt"], run["name"]) == ("QUEUED", 0, "quick")
    assert [edit["site"]["block"] for edit in run["work"]["design"]["edits"]] == [1, 3]


def test_yaml_is_taken_as_well(client: TestClient) -> None:
    text = "name: y\nbackbone: testbed/dit-fashion\n"
    answer = client.post(SUBMIT, content=text, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 202


def test_the_same_key_gives_the_same_run_and_another_body_is_refused(client: TestClient) -> None:
    first = submit(client, key="k1")
    assert submit(client, key="k1") == first
    answer = client.post(SUBMIT, json=document(name="other"), headers={"Idempotency-Key": "k1"})
    assert (answer.status_code, answer.json()["code"]) == (422, "key-reused")
    assert stored(client) == 1


def test_a_submission_is_labelled_by_its_tag_and_the_old_name_is_refused(client: TestClient) -> None:
    run = client.post(f"{SUBMIT}?tag=sweep", json=document()).json()["run_id"]
    assert client.get(f"/api/v1/runs/{run}").json()["tag"] == "sweep"
    assert client.get("/api/v1/runs").json()["runs"][0]["tag"] == "sweep"
    answer = client.post(f"{SUBMIT}?study=sweep", json=document(name="other"))
    assert (answer.status_code, answer.json()["pointer"]) == (422, "/query/study")
    assert "it is called 'tag' now" in answer.json()["detail"]
    old = client.put("/api/v1/accounts/study/sweep", json={"max_queued": 1})
    assert (old.status_code, "'tag'" in old.json()["detail"]) == (422, True)
    assert stored(client) == 1


def test_a_key_that_comes_back_with_anything_else_is_refused(client: TestClient) -> None:
    key, body = {"Idempotency-Key": "k"}, document()
    first = client.post(f"{SUBMIT}?priority=1&tag=s", json=body, headers=key)
    again = client.post(f"{SUBMIT}?tag=s&priority=1", json=body, headers=key)
    assert (again.status_code, again.json()) == (202, first.json())
    for query in ("", "?priority=2&tag=s", "?priority=1&tag=t", "?priority=1"):
        answer = client.post(f"{SUBMIT}{query}", json=body, headers=key)
        assert (answer.status_code, answer.json()["code"]) == (422, "key-reused"), query
    analysis = {"backbone": "testbed/dit-fashion"}
    assert client.post("/api/v1/analyses", json=analysis, headers=key).json()["code"] == "key-reused"
    assert stored(client) == 1
    limited = submit(client, budget={"device_seconds": 5.0})
    extend = f"/api/v1/runs/{limited}/extend"
    for seconds, status in ((5.0, 200), (5.0, 200), (6.0, 422)):
        answer = client.post(extend, json={"device_seconds": seconds}, headers=key)
        assert answer.status_code == status
    more = {"action": "extend", "runs": [limited], "device_seconds": 7.0}
    (result,) = client.post("/api/v1/actions", json=more, headers=key).json()
    assert "was used before" in result["problem"]


def test_a_plan_stores_nothing(client: TestClient) -> None:
    answer = client.post(f"{SUBMIT}/plan", json=document()).json()
    assert [stage["stage"] for stage in answer["stages"]] == ["distill", "finetune", "evaluate"]
    assert answer["cost"]["num_params"] > answer["cost"]["teacher_params"]
    assert stored(client) == 0


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("unknown backbone", {"backbone": "testbed/dit-fasion"}, "/backbone"),
    ("unknown operator", {"edits": [{"replace": "attention", "layers": "all", "with": {"kind": "hyena"}}]}, "/edits/0/with/kind"),
    ("unknown slot", {"edits": [{"replace": "norm", "layers": "all", "with": {"kind": "mha"}}]}, "/edits/0/replace"),
    ("layer out of range", {"edits": [{"replace": "attention", "layers": [8], "with": {"kind": "mha"}}]}, "/edits/0/layers"),
    ("wrong slot", {"edits": [{"replace": "mlp", "layers": [1], "with": {"kind": "mha"}}]}, "/edits/0/with/kind"),
    ("site twice", {"edits": [{"replace": "mlp", "layers": [1], "with": {"kind": "mlp"}}] * 2}, "/edits/1/layers"),
    ("wrong type", {"distill": {"steps": "many"}}, "/distill/steps"),
    ("unknown field", {"distil": {}}, "/distil"),
    ("too many workers", {"resources": {"workers": 3}}, "/resources/workers"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "pointer"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_designs_are_refused_with_their_place(
    client: TestClient, changes: dict[str, Any], pointer: str
) -> None:
    answer = client.post(SUBMIT, json=document(**changes))
    problem = answer.json()
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert (problem["pointer"], problem["type"]) == (pointer, "/problems/invalid")
    assert stored(client) == 0


BODIES: list[tuple[str, bytes, dict[str, str], int]] = [
    ("empty", b"", {}, 422),
    ("truncated", b'{"name": ', {}, 400),
    ("not UTF-8", b'{"name": "\xff"}', {}, 400),
    ("not finite", b'{"name": "a", "budget": {"flops": NaN}}', {}, 422),
    ("huge number", b'{"name": "a", "budget": {"flops": 1e400}}', {}, 422),
    ("repeated key", b'{"name": "a", "name": "b"}', {}, 400),
    ("deep", b"[" * 900 + b"]" * 900, {}, 400),
    ("very deep", b"[" * 100_000, {}, 400),
    ("large", b'"' + b"x" * 1_000_001 + b'"', {}, 413),
    ("form", b"name=a", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ("gzip", b"{}", {"Content-Encoding": "gzip"}, 415),
    ("aliases", b"a: &x [1]\nb: *x", {"Content-Type": "application/yaml"}, 400),
]


@pytest.mark.parametrize(
    ("body", "headers", "status"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES]
)
def test_bad_bodies_are_refused(
    client: TestClient, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = client.post(SUBMIT, content=body, headers={"Content-Type": "application/json", **headers})
    assert answer.status_code == status
    assert answer.json()["status"] == status
    assert stored(client) == 0


def test_a_backbone_without_weights_can_be_planned_but_not_run(client: TestClient) -> None:
    large = document(backbone="dit-xl-2-256", preset="paper", evaluate={})
    assert client.post(f"{SUBMIT}/plan", json=large).json()["runnable"] is False
    answer = client.post(SUBMIT, json=large)
    assert (answer.status_code, answer.json()["code"]) == (422, "not-runnable")


def test_pages_of_runs_join_without_gap_or_repeat(client: TestClient) -> None:
    made = [submit(client, name=f"run {index}") for index in range(5)]
    seen, cursor = [], None
    while True:
        params = {"limit": 2, "cursor": cursor} if cursor else {"limit": 2}
        page = client.get("/api/v1/runs", params=params).json()
        seen += [run["id"] for run in page["runs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(made)
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=abc", "state=DONE"])
def test_bad_queries_are_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/api/v1/runs?{query}").status_code == 422


def test_a_queued_run_is_cancelled_at_once_and_again_without_change(client: TestClient) -> None:
    run = submit(client)
    first = client.post(f"/api/v1/runs/{run}/cancel").json()
    again = client.post(f"/api/v1/runs/{run}/cancel").json()
    assert first["state"] == again["state"] == "CANCELLED"
    assert first["ended_at"] == again["ended_at"]


def test_a_finished_run_cannot_be_cancelled(client: TestClient) -> None:
    run = submit(client)
    with client.app.state.lab.database.writing() as session:  # type: ignore[attr-defined]  # as above
        session.get(RunRow, run).state = "SUCCEEDED"
    answer = client.post(f"/api/v1/runs/{run}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal-transition")


def test_the_stream_ends_with_the_run_and_resumes_where_it_broke(client: TestClient) -> None:
    run = submit(client)
    client.post(f"/api/v1/runs/{run}/cancel")

    def states(headers: dict[str, str]) -> list[tuple[int, str]]:
        text = client.get(f"/api/v1/runs/{run}/events", headers=headers).text
        data = [line[6:] for line in text.splitlines() if line.startswith("data: {") and line != "data: {}"]
        return [(event["id"], event["state"]) for event in map(json.loads, data)]

    assert states({}) == [(1, "QUEUED"), (2, "CANCELLED")]
    assert states({"Last-Event-ID": "1"}) == [(2, "CANCELLED")]


@pytest.mark.parametrize(
    "path", ["/api/v1/runs/nosuch", "/api/v1/runs/nosuch/events", "/api/v1/nosuch", "/nosuch"]
)
def test_unknown_addresses_are_problems(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


@pytest.mark.parametrize("name", ["x", "..%2f..%2flab.db", "%2e%2e%2flab.db"])
def test_artifacts_are_found_by_name_in_reports_only(client: TestClient, name: str) -> None:
    assert client.get(f"/api/v1/runs/{submit(client)}/artifacts/evaluate/{name}").status_code == 404


def test_an_artifact_of_any_size_comes_by_pieces_and_whole(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, content = submit(client), bytes(range(256)) * 10_000
    lab = client.app.state.lab  # type: ignore[attr-defined]  # starlette's type is wider
    lab.storage.write_bytes("evaluations/k/samples.npz", content)
    report = StageReport(stage="evaluate", key="k", artifacts={"samples.npz": "evaluations/k/samples.npz"})
    with lab.database.writing() as session:
        session.add(StageRow(run_id=run, stage="evaluate", attempt=1, report=report.model_dump(mode="json")))
    graft = GraftlabClient("http://testserver")
    http = TestClient(client.app, base_url="http://testserver/api/v1", headers=dict(client.headers))
    monkeypatch.setattr(graft, "_http", http)
    graft.save_artifact(run, "evaluate", "samples.npz", tmp_path / "mine.npz")
    assert (tmp_path / "mine.npz").read_bytes() == content
    with pytest.raises(ApiProblem, match="no artifact 'other'"):
        graft.save_artifact(run, "evaluate", "other", tmp_path / "other")
    assert not list(tmp_path.glob("*other*"))


def test_a_foreign_host_header_is_refused(client: TestClient) -> None:
    assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 400


def test_the_catalogue_lists_every_kind_with_its_cost(client: TestClient) -> None:
    operators = {view["kind"]: view for view in client.get("/api/v1/operators").json()}
    assert operators["mha"]["num_params"] == 5_313_024
    assert operators["hyena_x"]["num_params"] == 5_330_304
    assert {view["name"] for view in client.get("/api/v1/backbones").json()} >= {"testbed/dit-fashion"}


def test_not_ready_says_what_is_missing(client: TestClient) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "python -m service.processes.scheduler" in answer.json()["parts"]["scheduler"]


def test_openapi_knows_the_submission(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert "edits" in schema["components"]["schemas"]["Submission"]["properties"]


def test_openapi_describes_every_body_in_both_media_types(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    bodies = {
        f"{method} {path}": way["requestBody"]["content"]
        for path, ways in paths.items()
        for method, way in ways.items()
        if "requestBody" in way
    }
    assert len(bodies) == 21
    for content in bodies.values():
        assert list(content) == ["application/json", "application/yaml"]
        assert content["application/json"] == content["application/yaml"]
    schema = bodies["post /api/v1/studies"]["application/yaml"]["schema"]
    assert schema == {"$ref": "#/components/schemas/StudyDocument"}


def test_pages_escape_what_users_wrote(client: TestClient) -> None:
    run = submit(client, name="<script>alert(1)</script>")
    for page in ("/", "/runs", f"/runs/{run}"):
        answer = client.get(page)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text
        assert "script-src 'self'" in answer.headers["content-security-policy"]


def rank(client: TestClient, name: str, value: float, **changes: Any) -> str:
    """A run that has succeeded with this FID."""
    run = submit(client, name=name, **changes)
    report = {"fid40/fashion-cnn": value, "num_params": 1e6, "flops_per_image": 1e9}
    with client.app.state.lab.database.writing() as session:  # type: ignore[attr-defined]  # as above
        body = StageReport(stage="evaluate", key="k", metrics=report).model_dump(mode="json")
        session.add(StageRow(run_id=run, stage="evaluate", attempt=0, report=body))
        row = session.get_one(RunRow, run)
        row.state = "RUNNING"
        transition(session, row, "SUCCEEDED")
    return run


def test_the_leaderboard_comes_in_pages_that_join(client: TestClient) -> None:
    rank(client, "teacher", 5.0, edits=[])
    for index in range(5):
        rank(client, f"graft {index}", 10.0 - index, layers=[index])
    (first,) = client.get("/api/v1/leaderboard", params={"limit": 4}).json()["groups"]
    assert (first["total"], [row["rank"] for row in first["rows"]]) == (6, [1, 2, 3, 4])
    assert first["rows"][1]["value_change"] == pytest.approx(0.2)
    params = {"limit": 4, "protocol": first["protocol_digest"], "cursor": first["next_cursor"]}
    (rest,) = client.get("/api/v1/leaderboard", params=params).json()["groups"]
    assert [row["rank"] for row in rest["rows"]] == [5, 6]
    assert rest["next_cursor"] is None
    values = [row["value"] for row in first["rows"] + rest["rows"]]
    assert values == sorted(values)
    assert (
        client.get("/api/v1/leaderboard", params={**params, "cursor": "nosuch"}).json()["code"]
        == "bad-cursor"
    )


def test_an_experiment_that_ran_twice_is_ranked_once_by_its_latest_run(client: TestClient) -> None:
    rank(client, "first", 7.0)
    latest = rank(client, "again", 8.0)
    (group,) = client.get("/api/v1/leaderboard").json()["groups"]
    assert [(row["run_id"], row["value"]) for row in group["rows"]] == [(latest, 8.0)]


def test_a_runs_history_comes_in_pages(client: TestClient) -> None:
    run = submit(client)
    client.post(f"/api/v1/runs/{run}/cancel")
    page = client.get(f"/api/v1/runs/{run}/history", params={"limit": 1}).json()
    assert [event["id"] for event in page["events"]] == [1]
    rest = client.get(f"/api/v1/runs/{run}/history", params={"after": page["next_after"]}).json()
    assert ([event["id"] for event in rest["events"]], rest["next_after"]) == ([2], None)

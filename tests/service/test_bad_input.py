"""What a hostile or clumsy caller may send, numbered; every case ends at the door and stores nothing."""

import json
import threading
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from service.app import create_app
from service.db.tables import ExperimentRow, RunRow
from service.db.webhook_tables import WebhookRow
from service.local_keys import first_key
from service.settings import Settings
from tests.support.bad_requests import GET, POST, RUN, SUBMIT, Case, accepted_or_misnamed, changed, edit, raw
from tests.support.builders import document, study_document
from tests.support.clients import anonymous, as_user


def bent(text: str) -> dict[str, Any]:
    """A good submission with one field's text replaced where it stands."""
    return raw(
        json.dumps(document(name="NAME", budget={"flops": 77}, distill={"seed": 55}))
        .replace("NAME", "n")
        .replace('{"flops": 77}', text)
    )


def told(url: str) -> tuple[tuple[str, str], dict[str, Any]]:
    return ("POST", "/api/v1/webhooks"), {"json": {"url": url}}


CASES: list[Case] = [
    (1, "empty body", POST, raw(""), 422, "wrong-type"),
    (1, "null", POST, raw("null"), 422, "wrong-type"),
    (1, "list", POST, raw("[]"), 422, "wrong-type"),
    (2, "truncated", POST, raw('{"name": '), 400, "malformed"),
    (3, "not UTF-8", POST, raw(b'{"name": "\xff"}'), 400, "malformed"),
    (4, "NaN", POST, bent('{"flops": NaN}'), 422, "non-finite"),
    (4, "Infinity", POST, bent('{"flops": -Infinity}'), 422, "non-finite"),
    (4, "1e400", POST, bent('{"flops": 1e400}'), 422, "non-finite"),
    (5, "2^63 images", POST, changed(budget={"training_images": 2**63}), 422, "out-of-range"),
    (5, "2^63 warmup", POST, changed(distill={"warmup_steps": 2**63}), 422, "out-of-range"),
    (5, "2^63 after", (GET, f"{RUN}/r1/history?after={2**63}"), {}, 422, "less_than"),
    (6, "5000 digits", POST, bent('{"training_images": ' + "9" * 5000 + "}"), 400, "malformed"),
    (7, "lone surrogate", POST, raw(json.dumps(document()).replace('"quick"', '"\\ud800"')), 422, "bad-text"),
    (8, "NUL in a name", POST, changed(name="a\0b"), 422, "out-of-range"),
    (8, "NUL in an address", (GET, f"{RUN}?name=a%00b"), {}, 422, "bad-text"),
    (9, "900 deep", POST, raw("[" * 900 + "]" * 900), 400, "too-deep"),
    (9, "100,000 deep", POST, raw("[" * 100_000), 400, "too-deep"),
    (10, "repeated key", POST, raw('{"name": "a", "name": "b"}'), 400, "malformed"),
    (11, "unknown field", POST, changed(distill={"stpes": 5}), 422, "unknown-field"),
    (11, "unknown parameter", (GET, f"{RUN}?limt=5"), {}, 422, "unknown-field"),
    (11, "repeated parameter", (GET, f"{RUN}?limit=5&limit=6"), {}, 422, "repeated"),
    (12, "text for a number", POST, changed(distill={"steps": "7"}), 422, "wrong-type"),
    (12, "true for a number", POST, changed(distill={"steps": True}), 422, "wrong-type"),
    (12, "7.0 for an integer", POST, changed(distill={"steps": 7.5}), 422, "wrong-type"),
    (
        13,
        "form",
        POST,
        raw("a=b", Content_Type="application/x-www-form-urlencoded"),
        415,
        "unsupported-media-type",
    ),
    (13, "no type", POST, {"content": "{}"}, 415, "unsupported-media-type"),
    (13, "UTF-16", POST, raw("{}".encode("utf-16")), 400, "malformed"),
    (14, "10 MB text", POST, raw('"' + "x" * 10_000_000 + '"'), 413, "too-large"),
    (16, "gzip", POST, raw(b"\x1f\x8b", Content_Encoding="gzip"), 415, "unsupported-media-type"),
    (18, "key in the address", (GET, f"{RUN}?name=glk_abc"), {}, 401, "key-in-url"),
    (20, "user sets owner", POST, changed(owner="me"), 422, "unknown-field"),
    (20, "user sets state", POST, changed(state="SUCCEEDED"), 422, "unknown-field"),
    (20, "user sets attempt", POST, changed(attempt=9), 422, "unknown-field"),
    (21, "unknown id", (GET, f"{RUN}/nosuch"), {}, 404, "not-found"),
    (21, "malformed id", (GET, f"{RUN}/a%20%27;--"), {}, 404, "not-found"),
    (21, "id -1", ("DELETE", "/api/v1/keys/-1"), {}, 422, "greater_than_equal"),
    (21, "20-digit id", ("DELETE", f"/api/v1/keys/{10**20}"), {}, 422, "less_than"),
    (22, "limit 0", (GET, f"{RUN}?limit=0"), {}, 422, "greater_than_equal"),
    (22, "limit -5", (GET, f"{RUN}?limit=-5"), {}, 422, "greater_than_equal"),
    (22, "limit 1e9", (GET, f"{RUN}?limit=1000000000"), {}, 422, "less_than_equal"),
    (22, "limit abc", (GET, f"{RUN}?limit=abc"), {}, 422, "int_parsing"),
    (22, "forged cursor", (GET, f"{RUN}?cursor=../x"), {}, 400, "bad-cursor"),
    (
        22,
        "forged cursor of the board",
        (GET, "/api/v1/leaderboard?protocol=x&cursor=x"),
        {},
        400,
        "bad-cursor",
    ),
    (23, "empty Idempotency-Key", POST, {**changed(), "headers": {"Idempotency-Key": ""}}, 400, "bad-key"),
    (23, "key of 256", POST, {**changed(), "headers": {"Idempotency-Key": "k" * 256}}, 400, "bad-key"),
    (26, "layer 28 of 8", POST, edit(layers=[28]), 422, "bad-layers"),
    (26, "layer -1", POST, edit(layers=[-1]), 422, "out-of-range"),
    (26, "layer twice", POST, edit(layers=[1, 1]), 422, "bad-layers"),
    (26, "no layers", POST, edit(layers=[]), 422, "bad-layers"),
    (27, "unknown operator", POST, edit(**{"with": {"kind": "hyena"}}), 422, "unknown-operator"),
    (
        27,
        "window -1",
        POST,
        edit(**{"with": {"kind": "window_attention", "half_width": -1}}),
        422,
        "out-of-range",
    ),
    (27, "kernel 0", POST, edit(**{"with": {"kind": "hyena_se", "kernel_size": 0}}), 422, "out-of-range"),
    (
        27,
        "ratio -1",
        POST,
        edit(replace="mlp", **{"with": {"kind": "mlp", "ratio": -1.0}}),
        422,
        "out-of-range",
    ),
    (28, "learning rate 0", POST, changed(distill={"learning_rate": 0.0}), 422, "out-of-range"),
    (28, "learning rate 1e9", POST, changed(finetune={"learning_rate": 1e9}), 422, "out-of-range"),
    (28, "steps 10^9", POST, changed(finetune={"steps": 10**9}), 422, "out-of-range"),
    (28, "batch 0", POST, changed(distill={"batch_size": 0}), 422, "out-of-range"),
    (28, "seed -1", POST, changed(distill={"seed": -1}), 422, "out-of-range"),
    (28, "seed 2^32 + 1", POST, changed(distill={"seed": 2**32 + 1}), 422, "out-of-range"),
    (29, "budget 0", POST, changed(budget={"device_seconds": 0}), 422, "out-of-range"),
    (29, "budget as text", POST, changed(budget={"device_seconds": "10 hours"}), 422, "wrong-type"),
    (31, "path as a backbone", POST, changed(backbone="../../etc/passwd"), 422, "unknown-backbone"),
    (31, "URL as a backbone", POST, changed(backbone="file:///etc/passwd"), 422, "unknown-backbone"),
    (
        31,
        "encoded path of an artifact",
        (GET, f"{RUN}/r1/artifacts/evaluate/%2e%2e%2flab.db"),
        {},
        404,
        "not-found",
    ),
    (31, "twice encoded", (GET, f"{RUN}/r1/artifacts/evaluate/%252e%252e%252flab.db"), {}, 404, "not-found"),
    (37, "YAML aliases", POST, raw("a: &x [1]\nb: *x", Content_Type="application/yaml"), 400, "malformed"),
    (
        37,
        "YAML object",
        POST,
        raw("a: !!python/object/apply:os.system [ls]", Content_Type="application/yaml"),
        400,
        "malformed",
    ),
    (37, "YAML tabs", POST, raw("a:\n\t- b", Content_Type="application/yaml"), 400, "malformed"),
    (37, "two documents", POST, raw("a: 1\n---\nb: 2", Content_Type="application/yaml"), 400, "malformed"),
    (
        37,
        "YAML no as a name",
        POST,
        raw("name: no\nbackbone: testbed/dit-fashion", Content_Type="application/yaml"),
        422,
        "wrong-type",
    ),
    (38, "10^4 characters", POST, changed(name="n" * 10_000), 422, "out-of-range"),
    (38, "newline in a name", POST, changed(name="a\nb"), 422, "out-of-range"),
    *(
        (39, url, *told(url), 422, "host-not-allowed")
        for url in (
            "http://127.0.0.1/",
            "http://localhost:8000/",
            "http://169.254.169.254/latest/meta-data/",
            "http://[::1]/",
            "http://2130706433/",
            "http://\uff11\uff12\uff17.0.0.1/",
            "http://user:secret@ci.internal/",
            "http://ci.internal\\@127.0.0.1/",
            "http://ci.internal/\r\nHost: x",
            "http://ci.internal:8081/",
            "http://ci.internal:99999/",
            "ftp://ci.internal/",
            "file:///etc/passwd",
            "//ci.internal/",
            "http:///",
        )
    ),
    (39, "empty address", *told(""), 422, "out-of-range"),
    (39, "long address", *told("http://ci.internal/" + "x" * 2000), 422, "out-of-range"),
    (
        39,
        "unknown type",
        ("POST", "/api/v1/webhooks"),
        {"json": {"url": "http://ci.internal/", "types": ["run.paused"]}},
        422,
        "not-allowed",
    ),
    (40, "foreign Host", (GET, RUN), {"headers": {"Host": "evil.example"}}, 400, "bad-host"),
    (41, "method not taken", ("DELETE", RUN), {}, 405, "not-allowed"),
    (41, "trailing slash", (GET, f"{RUN}/"), {}, 404, "not-found"),
    (41, "..;/", (GET, "/api/v1/..;/runs"), {}, 404, "not-found"),
]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A lab that calls webhooks, or row 39 would end at that."""
    return settings.model_copy(update={"webhook_hosts": ["ci.internal:80"]})


ELSEWHERE = {
    15: "tests/service/test_bad_connections.py: test_heads_that_are_too_large_are_refused",
    17: "tests/service/test_auth.py: test_all_bad_keys_get_the_same_answer",
    19: "tests/service/test_auth.py: test_foreign_runs_are_not_found_by_who_sees_only_their_own",
    24: "test_stale_and_missing_versions_are_refused",
    25: "test_what_has_ended_is_not_changed",
    30: "search spaces are refused by the spec of studies, in the tests of that spec",
    32: "no route takes a file; checkpoints of other formats are converted offline",
    33: "no route takes a file: test_no_route_takes_a_file",
    34: "no route takes a file; workers check the weights they load",
    35: "no route takes a file; reference moments are read by `graft reference`, with its own tests",
    36: "no route takes a picture: test_no_route_takes_a_file",
    42: "test_too_many_requests_are_told_to_wait; quotas in tests/service/test_actions.py",
    43: "tests/service/test_bad_connections.py: test_connections_that_do_not_get_on_are_closed",
    44: "tests/end_to_end/test_lab.py: test_bad_input_is_exit_code_two_and_one_line",
}
"""Numbers without a row above, and where they are proven or why they cannot happen."""


def test_every_number_is_accounted_for() -> None:
    assert {case[0] for case in CASES} | ELSEWHERE.keys() == set(range(1, 45))


def test_bad_input_ends_at_the_door(client: TestClient) -> None:
    wrong = accepted_or_misnamed(client, CASES)
    assert not wrong, "\n".join(map(str, wrong))
    with client.app.state.lab.database.reading() as session:  # type: ignore[attr-defined]  # starlette's type is wider
        assert session.scalar(select(func.count()).select_from(ExperimentRow)) == 0
        assert session.scalar(select(func.count()).select_from(WebhookRow)) == 0


def test_the_same_key_at_once_makes_one_run(client: TestClient) -> None:
    answers: list[Any] = []

    def send() -> None:
        answers.append(client.post(SUBMIT, json=document(), headers={"Idempotency-Key": "k"}))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["run_id"] for answer in answers}) == 1


def test_a_viewer_changes_nothing(client: TestClient) -> None:
    run = client.post(SUBMIT, json=document()).json()["run_id"]
    assert as_user(client, "v", "viewer").post(f"{RUN}/{run}/cancel").status_code == 403


def test_stale_and_missing_versions_are_refused(client: TestClient) -> None:
    study = client.post("/api/v1/studies", json=study_document()).json()["study_id"]
    url = f"/api/v1/studies/{study}"
    before = client.get(url).json()
    missing = client.post(f"{url}/extend", json={"trials": 1})
    assert (missing.status_code, missing.json()["pointer"]) == (422, "/version")
    asked = {"version": before["version"], "trials": 1}
    assert client.post(f"{url}/extend", json=asked).status_code == 200
    stale = client.post(f"{url}/extend", json=asked)
    assert (stale.status_code, stale.json()["code"]) == (409, "illegal-transition")
    assert f"not {asked['version']}; read it again" in stale.json()["detail"]


def test_a_key_keeps_the_rights_that_are_not_changed(client: TestClient) -> None:
    key = client.post("/api/v1/keys", json={"owner": "a", "sees": "own"}).json()
    changed = client.patch(f"/api/v1/keys/{key['id']}", json={"role": "viewer"}).json()
    assert (changed["role"], changed["sees"], changed["expires_at"]) == ("viewer", "own", None)
    assert client.get("/api/v1/keys").json()[0] == changed


def test_what_has_ended_is_not_changed(client: TestClient) -> None:
    run = client.post(SUBMIT, json=document()).json()["run_id"]
    with client.app.state.lab.database.writing() as session:  # type: ignore[attr-defined]  # as above
        session.get_one(RunRow, run).state = "SUCCEEDED"
    answer = client.post(f"{RUN}/{run}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal-transition")


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "{{7*7}}", "=CMD()", "grafted 🌱"])
def test_odd_names_are_shown_as_they_are_and_run_nothing(client: TestClient, name: str) -> None:
    run = client.post(SUBMIT, json=document(name=name)).json()["run_id"]
    assert client.get(f"{RUN}/{run}").json()["name"] == name
    for page in ("/runs", f"/runs/{run}"):
        text = client.get(page).text
        assert "<script>alert" not in text
        assert "<b>49" not in text


def test_other_origins_are_not_let_in_and_forwarding_headers_not_believed(client: TestClient) -> None:
    asked = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "X-Forwarded-For": "1.2.3.4",
    }
    answer = client.options(SUBMIT, headers=asked)
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


def test_too_many_requests_are_told_to_wait(settings: Settings) -> None:
    alone = {"requests_per_second": 1.0, "requests_burst": 5, "api_processes": 1}
    app = create_app(settings.model_copy(update=alone))
    headers = {"Authorization": f"Bearer {first_key(settings.data_dir)}"}
    with TestClient(app, headers=headers) as client:
        answers = [client.get("/api/v1/whoami") for _ in range(7)]
        assert [answer.status_code for answer in answers[:5]] == [200] * 5
        assert (answers[-1].status_code, answers[-1].json()["code"]) == (429, "too-many-requests")
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert anonymous(client).get("/healthz").status_code == 200
    app.state.lab.database.engine.dispose()


def test_no_route_takes_a_file(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    bodies = [
        way["requestBody"]["content"]
        for ways in paths.values()
        for way in ways.values()
        if "requestBody" in way
    ]
    assert bodies
    assert {kind for body in bodies for kind in body} <= {"application/json", "application/yaml"}

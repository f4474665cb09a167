"""Documents too large, doubtful or asking for what cannot be, numbered on; each is refused, none is kept."""

import asyncio
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from grafting_core.specs.documents.parsing import read_document
from service.api import documents
from service.db.study_tables import StudyRow
from service.db.tables import ExperimentRow
from tests.support.bad_requests import GET, POST, RUN, Case, accepted_or_misnamed, changed, edit, raw
from tests.support.builders import document


def yaml(text: str) -> dict[str, Any]:
    return raw(text, Content_Type="application/yaml")


def limited(limit: Any) -> dict[str, Any]:
    return {"json": {**SEARCH, "limits": {"params": limit}}}


TESTBED = "testbed/dit-fashion"
SPACE = {"attention": ["keep", "hyena_x"]}
SEARCH = {"name": "s", "backbone": TESTBED, "space": SPACE, "objectives": [{"minimize": "fid1k"}]}
STUDY, KEYS = ("POST", "/api/v1/studies"), ("POST", "/api/v1/keys")
ROUTES = [
    f"/api/v1/{name}" for name in ("experiments", "experiments/plan", "studies", "analyses", "scions:fill")
]
ROUTES += [f"/api/v1/{name}" for name in ("scions:gc", "keys", "actions", "admin/gc", "webhooks")]
DIGITS = [
    "0x" + "f" * 9000,
    "0o" + "7" * 9000,
    "0b" + "1" * 9000,
    "1" + ":59" * 5000,
    "9" * 9000,
    "0." + "3" * 9000,
]
INVISIBLE = ["", " ", "\u200b", "a\u202eb", "\u2066a", "a\u2028b", "a\x1b[2J", "\u3164"]
CASES: list[Case] = [
    *(
        (45, f"{number[:4]} in {route}", ("POST", route), yaml(f"a: {number}"), 400, "malformed")
        for route in ROUTES
        for number in DIGITS
    ),
    (46, "share 1e308", POST, edit(layers={"deep": 1e308}), 422, "bad-layers"),
    *(
        (46, f"limit {limit}"[:20], STUDY, limited(limit), 422, "bad-limit")
        for limit in ("inf", "1e308x", "1e400", 10**90)
    ),
    (46, "limit of 10^400", STUDY, raw('{"limits": {"params": 1' + "0" * 400 + "}}"), 400, "malformed"),
    (46, "limit of 900,000 digits", STUDY, limited("9" * 900_000), 422, "out-of-range"),
    (47, "scion id of 5,000", (GET, f"/api/v1/scions/{'a' * 5000}"), {}, 404, "not-found"),
    (47, "run id of 5,000", (GET, f"{RUN}/{'a' * 5000}"), {}, 404, "not-found"),
    (48, "100,000 layers", POST, edit(layers=[1] * 100_000), 422, "too-many"),
    (48, "15,000 layers", POST, edit(layers=[1] * 15_000), 422, "out-of-range"),
    (48, "40,000 keys", POST, changed(**{f"k{number}": 1 for number in range(40_000)}), 422, "too-many"),
    (
        48,
        "9,000 unknown keys",
        POST,
        changed(**{f"k{number}": 1 for number in range(9_000)}),
        422,
        "unknown-field",
    ),
    (48, "40,000 times one key", POST, raw("{" + '"k":1,' * 40_000 + '"k":1}'), 400, "malformed"),
    (48, "60,000 pairs", POST, edit(layers={"pairs": [[1, 2]] * 60_000}), 422, "too-many"),
    *((49, f"name {name!a}", POST, changed(name=name), 422, "out-of-range") for name in INVISIBLE),
    *((49, f"owner {name!a}", KEYS, {"json": {"owner": name}}, 422, "out-of-range") for name in INVISIBLE),
    *(
        (49, f"study {name!a}", STUDY, {"json": {**SEARCH, "name": name}}, 422, "out-of-range")
        for name in INVISIBLE
    ),
    *(
        (49, f"search for {name!a}", (GET, RUN), {"params": {"name": name}}, 422, "bad-text")
        for name in INVISIBLE[2:]
    ),
    (50, "more held out than there is", POST, changed(distill={"held_out": 6001}), 422, "out-of-range"),
    (
        50,
        "band of 10^30",
        ("POST", "/api/v1/analyses"),
        {"json": {"backbone": TESTBED, "bands": [10**30]}},
        422,
        "out-of-range",
    ),
    (50, "50,000 baselines", STUDY, {"json": {**SEARCH, "baselines": ["teacher"] * 50_000}}, 422, "too-many"),
    (
        50,
        "a baseline twice",
        STUDY,
        {"json": {**SEARCH, "baselines": ["deep", "deep"]}},
        422,
        "repeated-choice",
    ),
    (51, "leading zero", POST, yaml("name: a\ndistill: {seed: 0100}"), 400, "malformed"),
    (51, "base-60 number", POST, yaml("budget: {device_seconds: 1:30:00}"), 400, "malformed"),
]


def test_doubtful_documents_end_at_the_door(client: TestClient) -> None:
    assert {case[0] for case in CASES} == set(range(45, 52))
    wrong = accepted_or_misnamed(client, CASES)
    assert not wrong, "\n".join(map(str, wrong))
    with client.app.state.lab.database.reading() as session:  # type: ignore[attr-defined]  # starlette's type is wider
        assert session.scalar(select(func.count()).select_from(ExperimentRow)) == 0
        assert session.scalar(select(func.count()).select_from(StudyRow)) == 0


def test_documents_are_read_beside_other_requests(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the event loop, which all requests share."""
    on_the_loop: list[bool] = []

    def noting(text: str) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            on_the_loop.append(False)
        else:
            on_the_loop.append(True)
        return read_document(text)

    monkeypatch.setattr(documents, "read_document", noting)
    for route in ROUTES:
        client.post(route, json={"a": 1})
    assert on_the_loop == [False] * len(ROUTES)


def test_of_many_problems_the_first_are_told_and_the_others_counted(client: TestClient) -> None:
    answer = client.post(POST[1], json=document(**{f"k{number}": 1 for number in range(9_000)}))
    said = answer.json()
    assert (len(said["errors"]), said["left_out"]) == (20, 8_980)
    assert said["detail"].endswith("and 8,980 more problems")

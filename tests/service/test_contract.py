"""The OpenAPI document is what the application does: generated requests, all checks, both databases.

Beside what the document describes: bodies, ids and parameters of kinds that have brought services down.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hypothesis
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance

from service.settings import Settings

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "4"))
"""Good ones and as many bad ones, an operation and database; `make schemathesis` takes many."""
PATIENT = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


MEANT = {
    GenerationMode.NEGATIVE: [],
    GenerationMode.POSITIVE: [positive_data_acceptance],
}
"""A document that fits the schema may still be refused for what it means: an unknown backbone, a layer
that is not there. Those refusals have their table in test_bad_input.py.
"""


REPORT = os.environ.get("SCHEMATHESIS_REPORT")
"""Where to say what was sent; `make schemathesis` keeps it in docs/results/contract.md."""


MAX_ANSWER = 60_000
"""Bytes; a refusal is not as long as what is refused."""
LONG = st.integers(101, 200_000)
NUMBERS = st.sampled_from(
    ["0x{f}", "-0x{f}", "0o{7}", "0b{1}", "{9}", "1{:59}", "0.{3}", "1e{9}", "0{1}", "{_1}"]
)
UNSEEN = st.sampled_from(["\u200b", "\u202e", "\u2066", "\u2028", "\u0085", "\x1b", "\ufeff", "\u3164"])


def repeated(pattern: str, count: int) -> str:
    """The part in braces so many times."""
    before, rest = pattern.split("{", 1)
    part, after = rest.split("}", 1)
    return before + part * count + after


BODIES = st.one_of(
    st.builds(lambda number, count: f"a: {repeated(number, count)}", NUMBERS, LONG),
    st.builds(lambda count: '{"a": ' + "9" * count + "}", LONG),
    st.builds(
        lambda opening, count: opening * (count + 40), st.sampled_from(["[", '{"a":', "- ", "a: {"]), LONG
    ),
    st.builds(lambda count: "a: [" + "1," * (count + 20_000) + "1]", LONG),
    st.builds(lambda count: "[" + "1," * (count + 20_000) + "1]", LONG),
    st.builds(lambda count: "{" + ",".join(f'"k{n}":1' for n in range(count % 60_000)) + "}", LONG),
    st.builds(lambda count: "\n".join(f"k{n}: 1" for n in range(count % 60_000)), LONG),
    st.builds(lambda count: '{"a":1' + ',"a":1' * (count % 90_000) + ',"a":2}', LONG),
    st.builds(
        lambda count: "a: &x [" + "1," * 9 + "1]\n" + "".join(f"b{n}: *x\n" for n in range(count % 9000)),
        LONG,
    ),
    st.builds(lambda count: f"{'k' * (count + 100)}: 1", LONG),
    st.builds(lambda unseen: f'{{"name": "a{unseen}", "{unseen}": 1}}'.replace("\x1b", "\\u001b"), UNSEEN),
    st.sampled_from(
        ["", "null", "a: !!python/name:os.system", "<<: {a: 1}", '{"a": "\\ud800"}', "\x00", "a: .inf"]
    ),
)
"""Bodies that no operation takes, whatever it is for."""
PARTS = st.one_of(
    st.builds(lambda letter, count: letter * (count % 6000 + 201), st.sampled_from("a9-\u00e9"), LONG),
    st.builds(lambda unseen: f"a{unseen}", UNSEEN),
    st.sampled_from(["9" * 30, "-1", " ", "\u2028", "nosuch\x7f"]),
)
"""What is no id and no name of anything."""


def attack_with_bad_kinds(client: TestClient, path: str, method: str, operation: dict[str, Any]) -> int:
    """Send what has brought services down; how often. Raises AssertionError where it is not refused."""
    parameters = {place: [] for place in ("path", "query")}
    for each in operation.get("parameters", []):
        parameters.get(each["in"], []).append(each["name"])
    sent = 0

    @PATIENT
    @given(body=BODIES, kind=st.sampled_from(["json", "yaml"]), part=PARTS, unseen=UNSEEN)
    def send(body: str, kind: str, part: str, unseen: str) -> None:
        nonlocal sent
        asked = []
        if "requestBody" in operation:
            headers = {"Content-Type": f"application/{kind}"}
            asked.append((filled(path, "1"), {"content": body.encode(), "headers": headers}))
        for name in parameters["path"]:
            asked.append((filled(path, "1", **{name: part}), {}))
        for name in parameters["query"]:
            asked += [(filled(path, "1"), {"params": {name: value}}) for value in (f"a{unseen}", "9" * 400)]
        for address, request in asked:
            answer = client.request(method, address, **request)
            sent += 1
            told = (method, address[:80], str(request)[:80], answer.status_code, answer.text[:200])
            assert 400 <= answer.status_code < 500, told
            assert len(answer.content) < MAX_ANSWER, told

    send()
    return sent


def filled(path: str, default: str, **given: str) -> str:
    """The path with its parameters; those that are not given have the default."""
    for name in re.findall("{([^}]+)}", path):
        path = path.replace("{" + name + "}", quote(given.get(name, default), safe=""))
    return path


def test_every_operation_refuses_what_has_brought_services_down(
    client: TestClient, database_kind: str
) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    broken, sent = {}, 0
    for path, ways in paths.items():
        for method, operation in ways.items():
            try:
                sent += attack_with_bad_kinds(client, path, method.upper(), operation)
            except (Exception, ExceptionGroup) as error:  # noqa: BLE001 - no breach hides another
                broken[f"{method} {path}"] = _told(error)
    if REPORT:
        _report(
            Path(REPORT),
            f"{database_kind}, bad kinds",
            sum(map(len, paths.values())),
            Counter({GenerationMode.NEGATIVE: sent}),
            len(broken),
        )
    assert sent > 100
    assert not broken, "\n\n".join(f"{name}: {text}" for name, text in broken.items())


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """No limit of requests: what is refused for their number is not refused for what it is."""
    return settings.model_copy(update={"requests_per_second": 1e6, "requests_burst": 10**6})


def is_right_in_address(value: object) -> bool:
    """Whether a list or object leaves nothing in an address that could be wrong.

    It has no content at any depth, or is a list of one value, which is written as the value itself.
    """
    if isinstance(value, dict):
        return all(each is None or is_right_in_address(each) for each in value.values())
    if not isinstance(value, list):
        return False
    content = [each for each in value if each is not None and not is_right_in_address(each)]
    return len(content) <= 1


def attack(
    operation: Any, mode: GenerationMode, headers: dict[str, str], sent: Counter[GenerationMode]
) -> None:
    """Send generated requests of one operation; raises where an answer breaks the contract."""

    @PATIENT
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        assume(not any(is_right_in_address(value) for value in (case.query or {}).values()))
        sent[mode] += 1
        case.call_and_validate(headers=headers, excluded_checks=MEANT[mode])

    send()


def test_every_operation_keeps_its_contract(client: TestClient, database_kind: str) -> None:
    headers = {"Authorization": client.headers["Authorization"]}
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app, headers=headers)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 20
    broken: dict[str, str] = {}
    sent: Counter[GenerationMode] = Counter()
    for operation in operations:
        if operation.path.endswith(("/events", "/readyz")):
            continue  # a stream ends with its run, and nothing leads here; test_api.py has both
        for mode in GenerationMode:
            try:
                attack(operation, mode, headers, sent)
            except Unsatisfiable:
                continue  # it takes nothing that could be wrong
            except (Exception, FailureGroup) as error:  # noqa: BLE001 - no breach hides another
                broken[f"{operation.label} ({mode.value})"] = _told(error)
    if REPORT:
        _report(Path(REPORT), database_kind, len(operations), sent, len(broken))
    assert not broken, "\n\n".join(f"{name}: {text}" for name, text in broken.items())


HEAD = """# The REST interface against its OpenAPI document

`make schemathesis` generates valid and invalid requests from the OpenAPI document, sends them to the
application over each database, and checks every answer: no server error; status, headers and body as
documented; invalid data refused; deleted things not found; authentication required; undefined methods
refused. Excluded are `/runs/{id}/events`, a stream that ends with its run, and `/readyz`, which the
document does not link to; both have tests of their own. It is not checked that a valid request succeeds: a
document may fit the schema and still name a layer that does not exist.

The rows "bad kinds" are requests that the document forbids: bodies with huge numbers in every notation,
with too many levels or characters, with repeated keys, aliases or tags, ids of thousands of characters, and
invisible text. Every operation refuses them with a status from 400 to 499 and an answer below 60 kB.

| database | operations | good requests | bad requests | operations with a breach |
|---|---|---|---|---|
"""


def _report(path: Path, database: str, operations: int, sent: Counter[GenerationMode], broken: int) -> None:
    """A line for this database, below the others'."""
    good, bad = sent[GenerationMode.POSITIVE], sent[GenerationMode.NEGATIVE]
    before = path.read_text() if path.exists() else HEAD
    path.write_text(f"{before}| {database} | {operations} | {good:,} | {bad:,} | {broken} |\n")


def _told(error: BaseException) -> str:
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else [error]
    return "\n".join(str(part)[:600] for part in parts)

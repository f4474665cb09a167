"""The OpenAPI document is what the application does: generated requests, all checks, both databases."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, assume, given
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance

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
"""Where to say what was sent; `make schemathesis` keeps it in docs/contract.md."""


def attack(
    operation: Any, mode: GenerationMode, headers: dict[str, str], sent: Counter[GenerationMode]
) -> None:
    """Send generated requests of one operation; raises where an answer breaks the contract."""

    @PATIENT
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        # An empty list leaves nothing in an address that could be wrong.
        assume([] not in (case.query or {}).values())
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


HEAD = """# The interface against its own description

`make schemathesis` generates requests from the OpenAPI document, good ones and bad ones, sends them to
the application over each database, and checks every answer: no server error, status, headers and body as
described, bad data refused, no use after deletion, authentication not ignored, methods that are not
there refused. Left out are `/runs/{id}/events`, a stream that ends with its run, and `/readyz`, to which
nothing leads; tests of their own have both. That a good request is accepted is not asked, since a
document may fit the schema and still name a layer that is not there.

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

"""The OpenAPI document is what the application does: generated requests, all checks, both databases."""

import os
from typing import Any

import hypothesis
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
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


def attack(operation: Any, mode: GenerationMode, headers: dict[str, str]) -> None:
    """Send generated requests of one operation; raises where an answer breaks the contract."""

    @PATIENT
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        case.call_and_validate(headers=headers, excluded_checks=MEANT[mode])

    send()


def test_every_operation_keeps_its_contract(client: TestClient) -> None:
    headers = {"Authorization": client.headers["Authorization"]}
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app, headers=headers)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 20
    broken = {}
    for operation in operations:
        if operation.path.endswith(("/events", "/readyz")):
            continue  # a stream ends with its run, and nothing leads here; test_api.py has both
        for mode in GenerationMode:
            try:
                attack(operation, mode, headers)
            except Unsatisfiable:
                continue  # it takes nothing that could be wrong
            except (Exception, FailureGroup) as error:  # noqa: BLE001 - no breach hides another
                broken[f"{operation.label} ({mode.value})"] = _told(error)
    assert not broken, "\n\n".join(f"{name}: {text}" for name, text in broken.items())


def _told(error: BaseException) -> str:
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else [error]
    return "\n".join(str(part)[:600] for part in parts)

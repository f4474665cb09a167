"""Requests that must be refused: description of cases, and the check of their answers."""

from collections.abc import Iterable
from typing import Any

from fastapi.testclient import TestClient

from tests.support.builders import document

JSON = {"Content-Type": "application/json"}
SUBMIT = "/api/v1/experiments"
RUN = "/api/v1/runs"
POST, GET = ("POST", SUBMIT), "GET"
Case = tuple[int, str, tuple[str, str], dict[str, Any], int, str]


def raw(text: str | bytes, **headers: str) -> dict[str, Any]:
    return {
        "content": text,
        "headers": {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}},
    }


def changed(**changes: Any) -> dict[str, Any]:
    return {"json": document(**changes)}


def edit(**fields: Any) -> dict[str, Any]:
    return changed(edits=[{"replace": "attention", "layers": [1], "with": {"kind": "mha"}, **fields}])


def accepted_or_misnamed(client: TestClient, cases: Iterable[Case]) -> list[tuple[Any, ...]]:
    """Return the cases that are not refused as expected, with the answers they got."""
    client.headers.pop("content-type", None)
    wrong = []
    for number, name, (method, path), request, status, code in cases:
        answer = client.request(method, path, **request)
        said = answer.json() if "json" in answer.headers["content-type"] else {}
        codes = {said.get("code"), *(error["code"] for error in said.get("errors", []))}
        if answer.status_code != status or code not in codes or len(answer.content) > 20_000:
            wrong.append((number, name, answer.status_code, answer.text[:200]))
        assert answer.status_code != 405 or answer.headers["allow"], path
    return wrong

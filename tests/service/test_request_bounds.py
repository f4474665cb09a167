"""Whatever a request may hold is bounded: every list, dictionary and text of every body, every parameter."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

BOUNDS = {"array": "maxItems", "string": "maxLength", "object": "maxProperties"}


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


def unbounded(schema: Any, components: dict[str, Any], place: str, seen: frozenset[str]) -> Iterator[str]:
    """Places of a schema that anything of any size fits."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        if name not in seen:
            yield from unbounded(components[name], components, f"{place}<{name}>", seen | {name})
        return
    kind = schema.get("type")
    closed = "enum" in schema or "const" in schema or schema.get("additionalProperties") is False
    if kind in BOUNDS and not closed and BOUNDS[kind] not in schema:
        yield place
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for number, part in enumerate(schema.get(key, [])):
            yield from unbounded(part, components, f"{place}/{number}", seen)
    for name, part in schema.get("properties", {}).items():
        yield from unbounded(part, components, f"{place}/{name}", seen)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from unbounded(schema[key], components, f"{place}/*", seen)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, ways in document["paths"].items():
        for method, operation in ways.items():
            yield f"{method} {path}", operation


def test_every_list_and_text_of_a_body_is_bounded(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    components = document["components"]["schemas"]
    bodies = [(name, each["requestBody"]) for name, each in operations(document) if "requestBody" in each]
    assert len(bodies) > 8
    open_places = [
        place
        for name, body in bodies
        for content in body["content"].values()
        for place in unbounded(content["schema"], components, name, frozenset())
    ]
    assert not open_places, "\n".join(sorted(set(open_places)))


def test_every_parameter_of_a_query_is_bounded(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    open_places = [
        f"{name}?{each['name']}"
        for name, operation in operations(document)
        for each in operation.get("parameters", [])
        if each["in"] == "query" and not _bounded(each["schema"])
    ]
    assert not open_places, "\n".join(open_places)


def _bounded(schema: dict[str, Any]) -> bool:
    parts = schema.get("anyOf") or [schema]
    return all(
        part.get("type") in ("null", "boolean")
        or {"enum", "const", "maxLength", "maxItems", "maximum", "exclusiveMaximum", "$ref"} & part.keys()
        or (part.get("type") == "array" and _bounded(part["items"]))
        for part in parts
    )


def test_unknown_and_unseen_parameters_reach_no_route(client: TestClient) -> None:
    for part in ("x" * 201, "x" * 5000, "a\u200b", "\u202e"):
        for address in (
            f"/api/v1/scions/{part}",
            f"/api/v1/runs/{part}",
            f"/runs/{part}",
            f"/studies/{part}",
        ):
            answer = client.get(address)
            assert (answer.status_code, answer.json()["code"]) == (404, "not-found"), address
            assert len(answer.content) < 1000

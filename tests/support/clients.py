"""HTTP clients of one application with other rights than the lab's first key."""

from typing import Any

from fastapi.testclient import TestClient


def anonymous(client: TestClient) -> TestClient:
    return TestClient(client.app, raise_server_exceptions=False, follow_redirects=False)


def as_user(client: TestClient, owner: str, role: str = "runner", **rights: Any) -> TestClient:
    key = client.post("/api/v1/keys", json={"owner": owner, "role": role, **rights}).json()["key"]
    return TestClient(client.app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {key}"})

"""A line a fact, with run and attempt, and no secret in it."""

import json
import logging

import pytest
from fastapi.testclient import TestClient

from service.local_keys import first_key
from service.logging import JsonLines
from service.settings import Settings


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    texts = [JsonLines().format(record) for record in caplog.records]
    assert not any("\n" in text for text in texts)
    return [json.loads(text) for text in texts]


def test_lines_name_run_and_attempt_and_cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        logging.getLogger("x").info("run %s attempt %s: %s", "0mfd8k3a1abcd", 3, 'ended\n{"level": "FORGED"}')
    (line,) = lines(caplog)
    assert (line["run"], line["attempt"], line["level"]) == ("0mfd8k3a1abcd", 3, "INFO")
    assert "FORGED" in str(line["message"])


def test_secrets_are_never_logged(
    client: TestClient, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    secret = first_key(settings.data_dir)
    made = client.post("/api/v1/keys", json={"owner": "alice"}).json()["key"]
    with caplog.at_level(logging.DEBUG):
        client.get(f"/api/v1/runs/{secret}")
        client.get("/api/v1/runs", params={"name": secret})
        client.get("/api/v1/runs", headers={"Authorization": f"Bearer {made}"})
        client.get(client.post("/api/v1/login-links").json()["path"])
        logging.getLogger("x").warning(
            "%s", f"Authorization: Bearer {secret} postgresql://user:hunter2@host/db"
        )
    text = json.dumps(lines(caplog))
    assert "/api/v1/runs" in text
    assert secret not in text
    assert made not in text
    assert "hunter2" not in text
    assert "code=" not in text.replace("code=[secret]", "")

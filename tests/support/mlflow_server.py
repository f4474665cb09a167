"""The lab's MLflow server as a process, together with an application, for tests of both."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from service.lab.ports import Claims
from service.local_keys import mlflow_token
from service.settings import Settings

START_SECONDS = 120


@contextmanager
def mlflow_server(folder: Path, port: int = 0) -> Iterator[Settings]:
    """Start the server of a data folder and yield the settings of a lab that uses it."""
    url = f"http://127.0.0.1:{port or Claims().claim()}/mlflow"
    environment = {**os.environ, "GRAFTLAB_DATA_DIR": str(folder), "GRAFTLAB_MLFLOW_URL": url}
    with (folder / "mlflow.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.processes.mlflow"], env=environment, stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + START_SECONDS
        while ask(folder, url, "/health") is None:
            assert process.poll() is None, (folder / "mlflow.log").read_text()
            assert time.monotonic() < end, "MLflow does not answer"
            time.sleep(0.2)
        yield settings_of(folder, url)
    finally:
        process.terminate()
        process.wait(30)


def ask(folder: Path, url: str, path: str) -> httpx.Response | None:
    """Send a request with the secret; return None if the server does not answer."""
    headers = {"Authorization": f"Bearer {mlflow_token(folder)}"}
    try:
        return httpx.get(f"{url}{path}", headers=headers, timeout=60, trust_env=False)
    except httpx.TransportError:
        return None


def settings_of(folder: Path, url: str) -> Settings:
    """Return settings of a lab in this folder whose MLflow is at this address."""
    hosts = ["testserver"]  # the Host header of Starlette's test client
    database_url = f"sqlite:///{folder / 'lab.db'}"
    return Settings(data_dir=folder, database_url=database_url, allowed_hosts=hosts, mlflow_url=url, cpus=2)

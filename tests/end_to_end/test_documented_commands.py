"""Every command of the documentation that needs a lab, as it is written there, on one lab."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from service.client import GraftlabClient
from service.lab.address import read_address
from service.local_keys import first_key
from tests.support.documentation import LAB, ROOT, first_block

pytestmark = [pytest.mark.large, pytest.mark.timeout(1800)]
QUICK: dict[str, Any] = {
    "distill": {"steps": 4, "warmup_steps": 0, "batch_size": 16, "held_out": 16, "images": 200},
    "finetune": {"steps": 4, "warmup_steps": 0, "batch_size": 16, "images": 200},
    "evaluate": {"samples": 40, "sampling_steps": 3, "micro_batch": 10},
}
"""The documents of the pages are made small; nothing else of them is changed."""
QUICK_STUDY: dict[str, Any] = {
    **QUICK,
    "objectives": [{"minimize": "fid40"}],
    "screening": {"trials": 3, "rungs": ["loss_gap"], "loss_draws": 64},
    "promote": 1,
    "baselines": [],
}
LONG = {
    **QUICK,
    "budget": {"device_seconds": 600},
    "finetune": {"steps": 100_000, "batch_size": 16, "images": 200},
    "edits": [{"replace": "mlp", "layers": [0], "with": {"kind": "mlp", "ratio": 3}}],
}
MLFLOW_SCRIPT = """
import mlflow
mlflow.set_experiment("my own")
with mlflow.start_run():
    mlflow.log_metric("loss", 0.5)
"""


class Reader:
    """Follows the pages: types their commands in one folder, with ids in place of the words in capitals."""

    def __init__(self, folder: Path, receiver: str) -> None:
        self.folder, self.names = folder, {"https://ci.example/graft": receiver}
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        host = receiver.removeprefix("http://").partition("/")[0]
        unset = [name for name in os.environ if name.startswith(("GRAFTLAB_", "MLFLOW_"))]
        self.environment = {name: value for name, value in os.environ.items() if name not in unset} | {
            "PATH": programs,
            "PYTHONPATH": str(ROOT),
            "GRAFTLAB_HOME": str(folder / "home"),
            "GRAFTLAB_WEBHOOK_HOSTS": json.dumps([host]),
        }

    def types(self, step: str) -> list[str]:
        """Carry out the commands of a step; what each printed."""
        printed = []
        for command in LAB[step]:
            typed = command
            for name, value in self.names.items():
                typed = re.sub(rf"(?<![\w$]){re.escape(name)}(?!\w)", value, typed)
            environment = {**self.environment, **(self.access() if "$GRAFTLAB_" in command else {})}
            done = subprocess.run(
                ["bash", "-c", typed],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{typed}\n{done.stdout}\n{done.stderr}"
            printed.append(done.stdout)
        return printed

    def starts_the_lab(self) -> subprocess.Popen[bytes]:
        (command,) = LAB["start"]
        with (self.folder / "printed").open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        until(lambda: "Ctrl-C stops" in (self.folder / "printed").read_text() or process.poll() is not None)
        assert process.poll() is None, (self.folder / "printed").read_text()
        return process

    def access(self) -> dict[str, str]:
        data = self.folder / "graftlab-data"
        address = read_address(data)
        assert address is not None
        return {"GRAFTLAB_URL": address.url, "GRAFTLAB_KEY": first_key(data)}


def until(reached: Callable[[], bool], seconds: float = 200) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "the state was not reached in time"
        time.sleep(0.2)


class Receiver(BaseHTTPRequestHandler):
    """Accepts every delivery of a webhook."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Somebody with the pages' files in a folder, a running lab, and a program that webhooks can call."""
    folder = tmp_path_factory.mktemp("reader")
    prepare(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reader = Reader(folder, f"http://127.0.0.1:{server.server_port}/graft")
        process = reader.starts_the_lab()
        try:
            yield reader
        finally:
            process.terminate()
            process.wait(90)
            server.shutdown()


@pytest.fixture(scope="module")
def client(reader: Reader) -> GraftlabClient:
    access = reader.access()
    return GraftlabClient(access["GRAFTLAB_URL"], key=access["GRAFTLAB_KEY"])


def prepare(folder: Path) -> None:
    for page, name in (
        ("getting-started.md", "my-design"),
        ("how-to/write-a-design.md", "attention-and-mlp"),
    ):
        small(yaml.safe_load(first_block(page, "yaml")), QUICK, folder / f"{name}.yaml")
    for name, changes in (
        ("teacher", QUICK),
        ("fill-attention", {"distill": QUICK["distill"]}),
        ("studies/demo", QUICK_STUDY),
    ):
        path = f"examples/{name}.yaml"
        small(yaml.safe_load((ROOT / path).read_text()), changes, folder / path)
    (folder / "protocol.yaml").write_text(first_block("how-to/evaluate-without-a-lab.md", "yaml"))
    (folder / "my_script.py").write_text(MLFLOW_SCRIPT)
    (folder / "client.py").write_text(first_block("how-to/use-the-python-client.md", "python"))
    (folder / "pictures").mkdir()
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (50, 28, 28, 3), np.uint8)):
        Image.fromarray(image).save(folder / f"pictures/{number}.png")


def small(document: dict[str, Any], changes: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**document, **changes}))


def test_designs_are_submitted_and_their_results_read(reader: Reader, client: GraftlabClient) -> None:
    reader.types("look around")
    reader.types("submit")
    until(lambda: all(run.state == "SUCCEEDED" for run in client.all_runs()))
    (run,) = [run for run in client.all_runs() if run.name == "attention-and-mlp"]
    reports = {report.stage: report for report in client.run(run.id).stages}
    reader.names |= {"RUN": run.id, "MODEL": reports["finetune"].key, "KEY": next(client.all_scions()).key}
    reader.types("read a run")
    assert np.load(reader.folder / "samples.npz")["arr_0"].shape == (40, 28, 28, 3)
    assert (reader.folder / "again.npz").read_bytes() == (reader.folder / "samples.npz").read_bytes()
    evaluated = reader.types("evaluate")
    assert all("fid40/fashion-cnn" in evaluated[number] for number in (0, 3, 4, 6))
    exported, published = (
        [line for line in evaluated[number].splitlines() if "fid40" in line] for number in (6, 4)
    )
    assert exported == published != []
    assert Image.open(reader.folder / "profile.png").width > 300
    assert reader.names["KEY"] in reader.types("bank")[2]


def test_the_python_of_the_how_to_does_what_it_says(reader: Reader, client: GraftlabClient) -> None:
    """The how-to's Python, with this lab's address and a small design."""
    program = (reader.folder / "client.py").read_text().replace("http://127.0.0.1:8000", client.url)
    program = program.replace("design = {", f"design = {QUICK!r} | {{")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=reader.folder,
        env=reader.environment,
        capture_output=True,
        text=True,
    )
    assert "SUCCEEDED" in done.stdout, done.stderr


def test_runs_and_budgets_are_controlled(reader: Reader, client: GraftlabClient) -> None:
    document = {"name": "long", "backbone": "testbed/dit-fashion", **LONG}
    run_id = client.submit(document).run_id
    reader.names["RUN"] = run_id
    reader.types("pause")
    reader.types("cancel")
    until(lambda: client.run(run_id).state == "CANCELLED")
    reader.types("retry")
    until(lambda: client.run(run_id).state == "CANCELLED")
    reader.types("budgets")
    (account,) = [account for account in client.accounts() if account.name == "ann"]
    assert account.max_running == 2


def test_a_study_is_made_read_changed_and_stopped(reader: Reader, client: GraftlabClient) -> None:
    reader.types("begin a study")
    (study,) = client.all_studies()
    reader.names["STUDY"] = study.id
    reader.types("read a study")
    for folder in ("report", "study-report"):
        assert (reader.folder / folder / "report.html").stat().st_size > 10_000
    reader.types("change a study")
    assert client.study(study.id).state == "DONE"
    reader.types("begin the same study")
    client.extend_study(study.id, trials=5)
    client.change_study(study.id, "pause")  # or it may be done before it is stopped
    reader.types("stop a study")
    assert client.study(study.id).state == "STOPPED"


def test_a_lab_is_kept_in_order(reader: Reader, client: GraftlabClient) -> None:
    reader.types("keys")
    made = client.keys()
    (board,) = [key for key in made if key.owner == "board"]
    reader.names["ID"] = str(board.id)
    reader.types("revoke a key")
    all_keys = client.keys()
    assert [key.owner for key in all_keys if key.revoked_at] == ["board"]
    reader.names["HOOK"] = "1"
    reader.types("webhooks")
    reader.names["CHECK"] = client.begin_check(quick=True).id
    reader.types("clean")


def test_a_lab_is_stopped_and_backed_up(reader: Reader) -> None:
    """The last test: the lab does not run afterwards."""
    reader.types("stop")
    backup = sqlite3.connect(reader.folder / "graftlab-backup.db")
    assert backup.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert backup.execute("SELECT count(*) FROM api_keys").fetchone() > (0,)
    backup.close()
    assert (reader.folder / "graftlab-backup-storage").is_dir()

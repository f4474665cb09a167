"""An attempt on a node that is being drained stops at a checkpoint; the run is not blamed for it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from grafting_core.storage.storage import Storage
from tests.support.builders import experiment
from workers.contract import (
    AttemptStopped,
    Event,
    RunTicket,
    Stop,
    attempt_folder,
    event_path,
    ticket_path,
)
from workers.liveness import DrainWatch

pytestmark = pytest.mark.large

TICKET = {"run_id": "r1", "attempt": 1}
LONG = {"finetune": {"steps": 100_000, "batch_size": 16, "images": 200}}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that computes nothing and one node that does."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def until(storage: Storage, seq: int, process: subprocess.Popen[bytes]) -> Event:
    """The attempt's event of this number, once it is written."""
    path = event_path("r1", 1, seq)
    while not storage.exists(path):
        assert process.poll() is None, "the attempt ended without a word"
        time.sleep(0.1)
    return storage.read_model(path, Event)


def events(storage: Storage, process: subprocess.Popen[bytes]) -> Iterator[Event]:
    seq = 1
    while True:
        yield until(storage, seq, process)
        seq += 1


@pytest.mark.timeout(300)
def test_an_attempt_leaves_a_node_that_drains(tmp_path: Path, cluster: Cluster) -> None:
    storage = Storage(str(tmp_path))
    ticket = RunTicket(**TICKET, work=experiment(**LONG), storage=str(tmp_path))  # type: ignore[arg-type]
    storage.write_model(ticket_path("r1", 1), ticket)
    words = ["--storage", str(tmp_path), "--run", "r1", "--attempt", "1"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    process = subprocess.Popen([sys.executable, "-m", "workers.driver", *words], env=environment)
    try:
        said = events(storage, process)
        next(event for event in said if event.body.type == "progress" and event.body.stage == "finetune")
        _drain(cluster, environment)
        last = next(event for event in said if event.body.type.startswith("attempt_"))
    finally:
        process.kill()
    assert isinstance(last.body, AttemptStopped)
    assert last.body.reason == "preempted"
    assert list(tmp_path.glob("runs/r1/checkpoints/**/*.safetensors"))


def _drain(cluster: Cluster, environment: dict[str, str]) -> None:
    (node,) = cluster.worker_nodes
    words = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot instance ends")
    words += ("--deadline-remaining-seconds", "60", "--node-id", node.node_id)
    ray = Path(sys.executable).with_name("ray")
    subprocess.run([ray, "drain-node", "--address", cluster.address, *words], env=environment, check=True)


def test_a_wish_that_is_there_already_is_kept(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    ticket = RunTicket(**TICKET, work=experiment(), storage=str(tmp_path))  # type: ignore[arg-type]
    path = f"{attempt_folder('r1', 1)}/stop"
    storage.write_model(path, Stop(reason="user_request"))
    looked: list[bool] = []
    watch = DrainWatch(storage, ticket, lambda: looked.append(True) or True)
    watch.start()
    while len(looked) < 2:
        time.sleep(0.05)
    assert storage.read_model(path, Stop).reason == "user_request"

"""Scions come into the bank once, whatever is killed, damaged, shared out or asked for twice."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grafting_core.backbones.base import Backbone
from grafting_core.specs.canonical import digest
from grafting_core.specs.documents.fills import parse_fill
from grafting_core.specs.experiment import ExperimentSpec, evaluation_key, finetune_key, scions_of
from grafting_core.storage.artifacts import CARD_DIGEST
from grafting_core.storage.bank import Bank
from grafting_core.storage.storage import Storage
from grafting_core.training.optim import Diverged
from service.db.engine import Database
from service.settings import Settings
from tests.support import distill_rank
from tests.support.builders import experiment, fill_document
from tests.support.control import new_scheduler
from tests.support.fakes import FakeCluster
from tests.support.runs import queue, state
from tests.support.stages import context, events_of
from workers.contract import AttemptStarted, RunTicket, StageDone, StageReport, ticket_path
from workers.group import run_stage, run_stages
from workers.stages import distill, fill, finetune

pytestmark = pytest.mark.large

WILD = {"steps": 30, "batch_size": 8, "held_out": 16, "images": 200, "learning_rate": 1.0, "clip_norm": 1e30}


def weights(folder: Path, spec: ExperimentSpec) -> dict[str, bytes]:
    bank = Bank(Storage(str(folder)))
    return {scion.name: bank.read(scion.key) for scion in scions_of(spec)}


def report_of(folder: Path, run: str = "r1", stage: str = "distill") -> StageReport:
    bodies = [event.body for event in events_of(folder, run)]
    return next(body.report for body in bodies if isinstance(body, StageDone) and body.report.stage == stage)


def started(folder: Path, rank: int, world: int, steps: int) -> "subprocess.Popen[bytes]":
    words = [str(folder), "r1", str(rank), str(world), str(steps)]
    return subprocess.Popen([sys.executable, "-m", "tests.support.distill_rank", *words])


def counting(backbone: Backbone) -> tuple[list[int], "object"]:
    counted: list[int] = []
    return counted, backbone.transformer.register_forward_hook(lambda *_: counted.append(1))


def test_two_concurrent_submissions_that_share_operators_cost_one_pass(
    tmp_path: Path, backbone: Backbone, sqlite_template: Path
) -> None:
    shutil.copy(sqlite_template, tmp_path / "graftlab.db")
    settings = Settings(data_dir=tmp_path, cpus=2, retry_seconds=0.0)
    database = Database(settings.database_url)
    storage = Storage(settings.storage)
    scheduler = new_scheduler(settings, database, FakeCluster())
    first = queue(database, layers=[1, 3])
    second = queue(database, layers=[1, 3], finetune={"steps": 3, "batch_size": 8, "images": 200})

    def run_attempt(run: str) -> int:
        """The distill stage of the run's ticket, as its worker would; forwards of the teacher."""
        ticket = storage.read_model(ticket_path(run, 1), RunTicket)
        at_work = context(Path(settings.storage), backbone, ticket.work, run)
        at_work.events.write(AttemptStarted(host="h", pid=1, device="cpu"))
        counted, handle = counting(backbone)
        run_stage(at_work, distill.run)
        handle.remove()
        return len(counted)

    for _ in range(2):
        scheduler.round()
    assert (state(database, first)[0], state(database, second)[0]) == ("STARTING", "QUEUED")
    steps, held_out, scores = 6, 1, 1 + 2
    assert run_attempt(first) == steps + held_out + scores
    for _ in range(2):
        scheduler.round()
    assert state(database, second)[0] == "STARTING"
    assert run_attempt(second) == 0
    report = report_of(Path(settings.storage), second)
    assert (report.stop_cause, report.made) == ("reused", {})
    assert set(report.made_by.values()) == {first}
    database.engine.dispose()


def test_a_pass_killed_with_kill_9_is_taken_up_where_it_was(tmp_path: Path, backbone: Backbone) -> None:
    steps, killed_after = 50, 10
    spec, bank = distill_rank.spec(steps), Bank(Storage(str(tmp_path)))
    process = started(tmp_path, 0, 1, steps)
    files = [tmp_path / bank.folder(scion.key) / "progress" for scion in scions_of(spec)]
    written: set[int] = set()
    while len(written) < killed_after:
        assert process.poll() is None
        written |= {files[-1].stat().st_mtime_ns} if files[-1].exists() else set()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not any(bank.has(scion.key) for scion in scions_of(spec))
    counted, handle = counting(backbone)
    run_stage(context(tmp_path, backbone, spec, attempt=2), distill.run)
    handle.remove()
    held_out, scores = 1, 1 + len(files)
    assert len(counted) <= steps - killed_after + held_out + scores
    assert not any(file.exists() for file in files)
    run_stage(context(tmp_path / "whole", backbone, spec), distill.run)
    assert weights(tmp_path, spec) == weights(tmp_path / "whole", spec)


def test_any_number_of_workers_makes_the_same_scions(tmp_path: Path, backbone: Backbone) -> None:
    spec = distill_rank.spec(steps=5)
    processes = [started(tmp_path, rank, 2, steps=5) for rank in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    run_stage(context(tmp_path / "alone", backbone, spec), distill.run)
    assert weights(tmp_path, spec) == weights(tmp_path / "alone", spec)
    cards = [Bank(Storage(str(tmp_path))).card(scion.key) for scion in scions_of(spec)]
    assert all(card is not None and card.scores for card in cards)


def test_a_damaged_scion_is_reported_set_aside_and_made_anew(tmp_path: Path, backbone: Backbone) -> None:
    spec = experiment(layers=[1])
    run_stage(context(tmp_path, backbone, spec), distill.run)
    before = weights(tmp_path, spec)
    bank = Bank(Storage(str(tmp_path)))
    path = tmp_path / bank.artifact(next(bank.cards()))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    run_stage(context(tmp_path, backbone, spec, run="r2"), distill.run)
    assert weights(tmp_path, spec) == before
    report = report_of(tmp_path, "r2")
    assert report.stop_cause == "completed"
    assert "block 1 attention hyena_x" in report.notes[0]
    assert report.notes[0].endswith("does not match its card; made anew")


def test_one_that_diverges_is_named_and_the_others_are_banked(tmp_path: Path, backbone: Backbone) -> None:
    kinds = [{"kind": "hyena_x"}, {"kind": "identity"}]
    offer = {"replace": "attention", "layers": [1], "with": kinds}
    work = parse_fill(fill_document(offer, distill={**WILD, "attention_loss": "l2", "weight_decay": 1.0}))
    wild = [scion for scion in work.scions if scion.kind == "hyena_x"]
    bank = Bank(Storage(str(tmp_path)))
    bank.note_divergence(wild[0].key, "a loss of nan at step 2")
    run_stage(context(tmp_path, backbone, work), fill.run)
    report = report_of(tmp_path)
    assert report.notes == ("block 1 attention hyena_x diverged: a loss of nan at step 2",)
    assert [card.scion.kind for card in bank.cards()] == ["identity"]
    spec = experiment(layers=[1], distill={**WILD, "attention_loss": "l2", "weight_decay": 1.0})
    counted, handle = counting(backbone)
    with pytest.raises(Diverged, match="block 1 attention hyena_x: a loss of nan at step 2"):
        distill.run(context(tmp_path, backbone, spec, run="r2"))
    handle.remove()
    assert counted == []


def test_a_fill_serves_designs_to_come(tmp_path: Path, backbone: Backbone) -> None:
    work = parse_fill(fill_document())
    run_stage(context(tmp_path, backbone, work, run="fill"), fill.run)
    report = report_of(tmp_path, "fill")
    assert len(report.made) == 4
    assert report.metrics["nmse/block 1 attention hyena_x"] > 0
    assert report.metrics["replace_one/variance/block 3 attention window_attention"] > 0
    run_stage(context(tmp_path, backbone, experiment(layers=[1, 3])), distill.run)
    assert report_of(tmp_path).made_by == {"block 1 attention": "fill", "block 3 attention": "fill"}


def test_a_chosen_design_is_scored_by_restoring_each_site(tmp_path: Path, backbone: Backbone) -> None:
    spec = experiment(layers=[1, 3], restore_one=True)
    run_stage(context(tmp_path, backbone, spec), distill.run)
    bank = Bank(Storage(str(tmp_path)))
    cards = [card for key in bank.names() if (card := bank.full_card(key))]
    scores = [card.restored[digest(spec.design)]["restore_one/noise"] for card in cards]
    alone = [card.scores["replace_one/noise"] for card in cards]
    assert len(set(scores)) == 2
    assert all(score > 0 for score in (*scores, *alone))


def card_of(folder: Path) -> dict[str, Any]:
    """What is said of an artifact, without the digest of its own text."""
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return {name: value for name, value in card.items() if name != CARD_DIGEST}


def test_a_fresh_run_makes_model_and_evaluation_anew_and_scions_not(
    tmp_path: Path, backbone: Backbone
) -> None:
    spec = experiment(layers=[1])
    run_stages(context(tmp_path, backbone, spec))
    keys = [f"models/{finetune_key(spec)}", f"evaluations/{evaluation_key(spec)}"]
    cards = [card_of(tmp_path / key) for key in keys]
    run_stages(context(tmp_path, backbone, experiment(layers=[1], fresh=True), run="r2"))
    causes = [report_of(tmp_path, "r2", stage).stop_cause for stage in ("distill", "finetune", "evaluate")]
    assert causes == ["reused", "completed", "completed"]
    assert [{**card, "made_by": "r2"} for card in cards] == [card_of(tmp_path / key) for key in keys]
    run_stages(context(tmp_path, backbone, spec, run="r3"))
    assert report_of(tmp_path, "r3", "finetune").made_by == {"model": "r2"}
    assert report_of(tmp_path, "r3", "evaluate").made_by == {"evaluation": "r2"}


def test_a_scion_that_is_there_is_read_once(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = experiment(layers=[1, 3])
    run_stage(context(tmp_path, backbone, spec), distill.run)
    reads: list[str] = []
    whole, pieces = Storage.read_bytes, Storage.pieces

    def read_bytes(self: Storage, path: str) -> bytes:
        reads.append(path)
        return whole(self, path)

    def in_pieces(self: Storage, path: str, *size: int) -> Iterator[bytes]:
        reads.append(path)
        return pieces(self, path, *size)

    monkeypatch.setattr(Storage, "read_bytes", read_bytes)
    monkeypatch.setattr(Storage, "pieces", in_pieces)
    again = context(tmp_path, backbone, spec, run="r2")
    for stage in (distill, finetune):
        run_stage(again, stage.run)
    read = [path for path in reads if path.startswith("scions/") and path.endswith(".safetensors")]
    assert len(read) == len(set(read)) == 2
    assert again.scions == {}


def test_a_report_tells_the_full_price_of_what_was_found(tmp_path: Path, backbone: Backbone) -> None:
    run_stage(context(tmp_path, backbone, experiment(layers=[1])), distill.run)
    run_stage(context(tmp_path, backbone, experiment(layers=[1, 3]), run="r2"), distill.run)
    bank, report = Bank(Storage(str(tmp_path))), report_of(tmp_path, "r2")
    first, second = (scion.key for scion in scions_of(experiment(layers=[1, 3])))
    card = bank.card(first)
    assert card is not None
    assert report.found == {first: card.spend}
    assert card.spend.flops > 0
    assert set(report.made) == {second}

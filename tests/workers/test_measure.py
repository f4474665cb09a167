"""MEASURE publishes row by row, finds what is there, and goes on where it was stopped."""

from pathlib import Path

import pytest

from grafting_core.backbones.base import Backbone
from grafting_core.specs.backbone import backbone_cards
from grafting_core.specs.latency import LatencySpec, PartLatency, TimedPart
from grafting_core.specs.operators import KINDS
from grafting_core.storage.checksums import read_with_digest
from grafting_core.storage.storage import Storage
from tests.support.stages import context, events_of
from workers.contract import Progress, StageDone, StageReport, StageStarted, Stop, attempt_folder
from workers.group import PIPELINES
from workers.observer import AttemptStoppedEarly
from workers.stages import measure

CARD = backbone_cards()["testbed/dit-fashion"]
HYENA = TimedPart(place="attention", operator=KINDS["hyena_x"](kind="hyena_x"))
SMALL = TimedPart(place="mlp", operator=KINDS["mlp"](kind="mlp", ratio=1.0))


def table(*parts: TimedPart) -> LatencySpec:
    return LatencySpec(name="table", backbone=CARD.ref, parts=parts, batch=1)


def reported(folder: Path, run: str) -> StageReport:
    bodies = [event.body for event in events_of(folder, run)]
    return next(body.report for body in bodies if isinstance(body, StageDone))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest rounds do."""
    real = measure.LatencyBench.measure
    monkeypatch.setattr(measure.LatencyBench, "measure", lambda bench, part: real(bench, part, 0.0))


def test_rows_are_published_with_their_maker_and_found_by_the_next(
    tmp_path: Path, backbone: Backbone
) -> None:
    for run, work in (("r1", table(HYENA)), ("r2", table(HYENA, SMALL)), ("r3", table(SMALL, HYENA))):
        PIPELINES["latency"](context(tmp_path, backbone, work, run))
    first, second, third = (reported(tmp_path, run) for run in ("r1", "r2", "r3"))
    assert [each.stop_cause for each in (first, second, third)] == ["completed", "completed", "reused"]
    assert list(second.artifacts) == ["attention hyena_x", "mlp mlp(ratio=1)"]
    storage = Storage(str(tmp_path))
    rows = [read_with_digest(storage, path, PartLatency) for path in second.artifacts.values()]
    assert [(row.part, row.made_by) for row in rows if row] == [(HYENA, "r1"), (SMALL, "r2")]
    assert third.artifacts["attention hyena_x"] == first.artifacts["attention hyena_x"]


def test_progress_counts_rows_and_a_stopped_attempt_keeps_those_it_has(
    tmp_path: Path, backbone: Backbone
) -> None:
    storage = Storage(str(tmp_path))
    storage.write_model(f"{attempt_folder('r1', 1)}/stop", Stop(reason="user_request"))
    with pytest.raises(AttemptStoppedEarly):
        PIPELINES["latency"](context(tmp_path, backbone, table(HYENA, SMALL)))
    assert len(storage.names("latencies")) == 1
    PIPELINES["latency"](context(tmp_path, backbone, table(HYENA, SMALL), "r2"))
    bodies = [event.body for event in events_of(tmp_path, "r2")]
    started = next(body for body in bodies if isinstance(body, StageStarted))
    progress = [body for body in bodies if isinstance(body, Progress)]
    assert (started.stage, started.step, started.total_steps) == ("measure", 0, 2)
    assert progress[-1].step == 2
    assert len(storage.names("latencies")) == 2


def test_a_damaged_row_is_measured_anew(tmp_path: Path, backbone: Backbone) -> None:
    PIPELINES["latency"](context(tmp_path, backbone, table(HYENA)))
    path = tmp_path / reported(tmp_path, "r1").artifacts["attention hyena_x"]
    path.write_text(path.read_text().replace("hyena_x", "hyena_y"))
    PIPELINES["latency"](context(tmp_path, backbone, table(HYENA), "r2"))
    assert reported(tmp_path, "r2").stop_cause == "completed"
    row = read_with_digest(Storage(str(tmp_path)), str(path.relative_to(tmp_path)), PartLatency)
    assert row is not None
    assert row.made_by == "r2"

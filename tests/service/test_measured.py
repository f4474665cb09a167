"""Rungs are compared over models judged alike; latencies only within one kind of hardware."""

from collections.abc import Mapping
from pathlib import Path

from fastapi.testclient import TestClient

from grafting_core.specs.budget import Usage
from grafting_core.specs.experiment import fingerprint_of
from grafting_core.specs.latency import LatencySpec, TimedPart, row_path
from grafting_core.specs.operators import KINDS
from grafting_core.specs.results import (
    ClassFigures,
    EvaluationReport,
    Hardware,
    Latency,
    MeasuredCost,
    Parameters,
)
from grafting_core.storage.checksums import write_with_digest
from service.db.engine import Database
from service.domain.attempt_events import apply_event
from service.domain.leaderboard import leaderboard
from service.domain.run_queries import run_detail
from service.domain.rung_agreement import measured
from service.settings import Settings
from tests.support.builders import QUICK, experiment
from tests.support.latency import timed_row
from tests.support.runs import FIGURES, STARTED, event, started_run
from workers.contract import AttemptSucceeded, StageDone, StageReport

FID = "fid40/fashion-cnn"
MODELS: Mapping[int, tuple[float, float, float]] = {
    1: (0.1, 5.0, 0.9),
    2: (0.2, 7.0, 1.2),
    3: (0.3, 6.0, 0.7),
}
"""Grafted block -> loss gap, FID, ratio of latencies."""


def cost(ratio: float, cores: int = 2) -> MeasuredCost:
    forward = Latency(
        batch=1,
        pairs=30,
        median=ratio / 100,
        low=ratio / 110,
        high=ratio / 90,
        teacher_median=0.01,
        ratio=ratio,
        ratio_low=ratio - 0.15,
        ratio_high=ratio + 0.15,
    )
    return MeasuredCost(
        hardware=Hardware(device="cpu", processor="p", cores=cores, threads=1, memory_gib=8, torch="2"),
        parameters=Parameters(total=100, trainable=100, grafted=10, embedding=5, buffers=1),
        flops_per_forward=200,
        flops_per_image=1000,
        latencies=(forward,),
        cold_start_seconds=1.0,
        images_per_second=20.0,
        teacher_images_per_second=18.0,
        peak_bytes=2**21,
    )


def finished(database: Database, settings: Settings, block: int, cores: int = 2, **report: object) -> str:
    gap, fid, ratio = MODELS[block]
    metrics = {**FIGURES, FID: fid, "loss_gap": gap}
    done = StageReport(
        stage="evaluate",
        key="k",
        metrics=metrics,
        intervals={FID: (fid - 1, fid + 1)},
        cost=cost(ratio, cores),
        **report,
    )
    with database.writing() as session:
        run = started_run(session, layers=[block])
        for seq, body in enumerate((STARTED, StageDone(report=done), AttemptSucceeded(spend=Usage())), 1):
            assert apply_event(session, settings, event(run, seq, body))
        return run.id


def test_rungs_are_compared_over_the_models_that_have_both(database: Database, settings: Settings) -> None:
    for block in MODELS:
        finished(database, settings, block)
    with database.reading() as session:
        [ladder] = measured(session).ladders
    [agreement] = ladder.agreements
    assert (agreement.lower, agreement.higher, agreement.models) == ("loss_gap", FID, 3)
    assert agreement.correlation == 0.5


def test_latencies_of_other_hardware_are_never_ranked_together(
    database: Database, settings: Settings
) -> None:
    finished(database, settings, 1)
    finished(database, settings, 2, cores=64)
    finished(database, settings, 3)
    with database.reading() as session:
        groups = measured(session).latencies
    found = {group.hardware.cores: [row.ratio for row in group.rows] for group in groups}
    assert found == {2: [0.7, 0.9], 64: [1.2]}
    verdicts = {row.ratio: row.verdict for group in groups for row in group.rows}
    assert verdicts == {0.7: "faster", 0.9: "no difference", 1.2: "slower"}


def test_a_groups_fingerprint_is_what_its_digest_covers(database: Database, settings: Settings) -> None:
    run_id = finished(database, settings, 1)
    with database.reading() as session:
        [group] = leaderboard(session).groups
        detail = run_detail(session, run_id)
    assert group.fingerprint is not None
    assert group.fingerprint.digest == group.protocol_digest
    assert group.fingerprint.feature_network is not None
    assert detail is not None
    assert detail.intervals == {FID: (4.0, 6.0)}
    assert detail.cost == cost(0.9)


def test_anything_that_changes_a_figure_changes_the_fingerprint() -> None:
    before = fingerprint_of(experiment())
    for change in ({"seed": 1}, {"micro_batch": 20}, {"samples": 50}, {"mode": "adm"}, {"guidance": 2.0}):
        after = fingerprint_of(experiment(evaluate={**QUICK["evaluate"], **change}))
        assert after.digest != before.digest
    assert before.model_copy(update={"recipe": before.recipe + 1}).digest != before.digest
    assert before.model_copy(update={"feature_network": "0" * 64}).digest != before.digest


def test_pages_show_intervals_classes_cost_and_agreement(
    client: TestClient, database: Database, settings: Settings, tmp_path: Path
) -> None:
    report = EvaluationReport(
        fingerprint=fingerprint_of(experiment(layers=[1])),
        values={},
        warnings=("few samples",),
        classes=(ClassFigures(label=7, samples=4, accuracy=0.75, kid=0.01),),
        samples_digest="0" * 64,
    )
    path = "evaluations/k/report.json"
    client.app.state.lab.storage.write_model(path, report)  # type: ignore[attr-defined]
    run_id = finished(database, settings, 1, artifacts={"report.json": path})
    page = client.get(f"/runs/{run_id}").text
    for shown in ("4 to 6", "75.0 %", "few samples", "no difference", "2.0 MiB"):
        assert shown in page
    board = client.get("/measured").text
    assert "loss_gap" in board
    assert "0.90" in board
    assert client.get("/api/v1/measured").json()["latencies"][0]["rows"][0]["run_id"] == run_id


def test_the_latency_table_is_listed_by_kind_and_tokens_and_shown_on_its_page(client: TestClient) -> None:
    storage = client.app.state.lab.storage  # type: ignore[attr-defined]
    hyena = TimedPart(place="attention", operator=KINDS["hyena_x"](kind="hyena_x"))
    work = LatencySpec(name="t", backbone=experiment().design.backbone, parts=(hyena,), batch=8)
    for part, extra in ((TimedPart(place="rest"), -0.9), (hyena, -0.0125)):
        row = timed_row(work, part, extra)
        write_with_digest(storage, row_path(row.key), row)
    rows = client.get("/api/v1/latencies").json()["rows"]
    assert [(row["part"]["place"], row["extra"]) for row in rows] == [("attention", -0.0125), ("rest", -0.9)]
    [found] = client.get("/api/v1/latencies?kind=hyena_x&tokens=49").json()["rows"]
    assert (found["tokens"], found["width"], found["batch"]) == (49, 96, 8)
    assert (found["hardware"]["processor"], found["precision"]) == ("simulated", "float32")
    for nothing in ("kind=mamba2", "tokens=64"):
        assert client.get(f"/api/v1/latencies?{nothing}").json() == {"rows": []}
    page = client.get("/measured").text
    assert "attention hyena_x" in page
    assert "-1.25 %" in page

"""Stages publish whole artifacts, reuse what exists, and resume an interrupted attempt to the bit."""

from pathlib import Path

import pytest

from grafting_core.backbones.base import Backbone
from grafting_core.specs.cost import design_cost
from grafting_core.specs.experiment import evaluation_key, scion_keys, scions_of
from grafting_core.storage.storage import Storage
from grafting_core.training.finetune import Shard
from tests.support.builders import experiment, same
from tests.support.stages import context, events_of, model
from workers.contract import StageDone, Stop, attempt_folder
from workers.group import AttemptStoppedEarly, run_stages
from workers.stages.context import Context, Group
from workers.stages.distill_missing import ensure_distilled


def test_three_stages_publish_and_report(tmp_path: Path, backbone: Backbone) -> None:
    spec = experiment()
    run_stages(context(tmp_path, backbone, spec))
    events = events_of(tmp_path)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    reports = [event.body.report for event in events if isinstance(event.body, StageDone)]
    assert [(report.stage, report.stop_cause) for report in reports] == [
        ("distill", "completed"),
        ("finetune", "completed"),
        ("evaluate", "completed"),
    ]
    assert reports[2].metrics["fid40/fashion-cnn"] > 0
    assert (tmp_path / reports[2].artifacts["samples.png"]).read_bytes().startswith(b"\x89PNG")
    assert all(report.spend.device_seconds > 0 for report in reports)


@pytest.mark.large
def test_a_run_leaves_the_teacher_as_it_was(tmp_path: Path, backbone: Backbone) -> None:
    before = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    run_stages(context(tmp_path, backbone, experiment()))
    assert same(backbone.transformer.state_dict(), before)
    assert not any(parameter.requires_grad for parameter in backbone.transformer.parameters())


def test_a_second_run_of_the_same_design_reuses_everything(tmp_path: Path, backbone: Backbone) -> None:
    run_stages(context(tmp_path, backbone, experiment()))
    run_stages(context(tmp_path, backbone, experiment(), run="r2"))
    reports = [event.body.report for event in events_of(tmp_path, "r2") if isinstance(event.body, StageDone)]
    assert [report.stop_cause for report in reports] == ["reused"] * 3
    assert all(report.spend.flops == 0 for report in reports)


@pytest.mark.large
def test_a_design_that_shares_a_site_distils_only_what_is_new(tmp_path: Path, backbone: Backbone) -> None:
    run_stages(context(tmp_path, backbone, experiment(layers=[1])))
    storage = Storage(str(tmp_path))
    wider = experiment(layers=[1, 3])
    known = scion_keys(wider)["block 1 attention"]
    before = (tmp_path / f"scions/{known}/card.json").stat().st_mtime_ns
    run_stages(context(tmp_path, backbone, wider, run="r2"))
    assert len(storage.names("scions")) == 2
    assert (tmp_path / f"scions/{known}/card.json").stat().st_mtime_ns == before


@pytest.mark.large
def test_pairs_and_replacements_inside_them_go_through_all_stages(tmp_path: Path, backbone: Backbone) -> None:
    """A merge is a scion like any other, reused by a design that has it beside other edits."""
    alone = experiment(edits=[{"parallel_pairs": [[0, 1], [2, 3]]}])
    run_stages(context(tmp_path, backbone, alone))
    replaced = {"replace": "attention", "layers": [1], "with": {"kind": "hyena_x"}}
    both = experiment(edits=[replaced, {"parallel_pairs": [[0, 1]]}])
    run_stages(context(tmp_path, backbone, both, run="r2"))
    assert len(Storage(str(tmp_path)).names("scions")) == 3
    reports = [event.body.report for event in events_of(tmp_path, "r2") if isinstance(event.body, StageDone)]
    assert reports[0].metrics["nmse/pair 0+1"] < 0.1
    assert reports[2].metrics["num_params"] == design_cost(both, backbone.card).num_params


def test_the_teacher_alone_is_only_evaluated(tmp_path: Path, backbone: Backbone) -> None:
    spec = experiment(edits=[])
    run_stages(context(tmp_path, backbone, spec))
    assert [event.body.stage for event in events_of(tmp_path) if event.body.type == "stage_started"] == [
        "evaluate"
    ]
    reports = [event.body.report for event in events_of(tmp_path) if isinstance(event.body, StageDone)]
    assert reports[0].metrics["loss_gap"] == 0


@pytest.mark.large
def test_an_attempt_stopped_in_each_stage_ends_as_an_uninterrupted_one(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every attempt is stopped at its first chance, until one gets through."""
    spec = experiment()
    run_stages(context(tmp_path / "whole", backbone, spec))
    monkeypatch.setattr("workers.observer.STOP_CHECK_SECONDS", -1.0)
    folder, attempts = tmp_path / "broken", 0
    for attempt in range(1, 40):
        current = context(folder, backbone, spec, attempt=attempt)
        current.storage.write_model(f"{attempt_folder('r1', attempt)}/stop", Stop(reason="user_request"))
        attempts = attempt
        if _gets_through(current):
            break
    assert attempts > 10
    assert model(folder, spec) == model(tmp_path / "whole", spec)
    card = f"evaluations/{evaluation_key(spec)}/card.json"
    assert (folder / card).read_bytes() == (tmp_path / "whole" / card).read_bytes()


def _gets_through(context: Context) -> bool:
    try:
        run_stages(context)
    except AttemptStoppedEarly:
        return False
    return True


def test_a_spent_budget_stops_the_attempt(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.observer.STOP_CHECK_SECONDS", -1.0)
    spec = experiment(budget={"training_images": 20})
    with pytest.raises(AttemptStoppedEarly, match="budget_exhausted"):
        run_stages(context(tmp_path, backbone, spec))


def test_a_worker_without_a_scion_of_its_own_waits_for_the_others(tmp_path: Path, backbone: Backbone) -> None:
    spec = experiment(layers=[1])
    idle = context(tmp_path, backbone, spec)
    idle.group = Group(Shard(1, 2))
    ensure_distilled(idle, scions_of(spec), "stage")
    assert Storage(str(tmp_path)).names("scions") == []

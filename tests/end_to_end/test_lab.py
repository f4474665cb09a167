"""The lab as a user has it: REST, scheduler, Ray, storage, SQL and MLflow, with processes killed under it."""

import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from grafting_core.backbones.base import Backbone
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.experiment import finetune_key
from grafting_core.storage.storage import Storage
from grafting_core.training.finetune import Shard
from service.cli.discovery import lock
from service.client import ApiProblem, GraftlabClient, LabUnreachable
from service.lab.processes import MARK, PART, mark_of
from service.local_keys import first_key
from service.schemas.runs import RunDetail
from tests.support.builders import document
from tests.support.running_lab import GRAFT, RunningLab, running_lab, until
from workers.contract import RunTicket
from workers.events import EventLog
from workers.group import run_stages
from workers.observer import StopCondition
from workers.stages.context import Context, Group
from workers.usage import UsageMeter

pytestmark = pytest.mark.timeout(600)
SLOW = {
    "distill": {"steps": 4, "batch_size": 16, "held_out": 16, "images": 200},
    "finetune": {"steps": 400, "batch_size": 16, "images": 200},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """The lab as a user starts it, once."""
    with running_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="module")
def client(lab: RunningLab) -> GraftlabClient:
    return GraftlabClient(lab.address.url)


def finished(client: GraftlabClient, run_id: str) -> RunDetail:
    until(lambda: _has_ended(client, run_id))
    return client.run(run_id)


def _has_ended(client: GraftlabClient, run_id: str) -> bool:
    """Not yet, while the API is being started again."""
    try:
        return client.run(run_id).ended_at is not None
    except LabUnreachable:
        return False


def kill(lab: RunningLab, wanted: Callable[[psutil.Process], bool]) -> None:
    """SIGKILL to the lab's processes that are meant."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark_of(lab.folder) and wanted(process):
                os.kill(process.pid, signal.SIGKILL)
        except (psutil.Error, OSError):
            continue


def is_part(name: str) -> Callable[[psutil.Process], bool]:
    return lambda process: process.environ().get(PART) == name


def is_worker(process: psutil.Process) -> bool:
    return "graft_worker" in " ".join(process.cmdline())


def test_a_submission_travels_all_the_way(lab: RunningLab, client: GraftlabClient) -> None:
    teacher = client.submit(document(name="teacher", edits=[])).run_id
    graft = client.submit(document(name="graft")).run_id
    runs = [finished(client, run) for run in (teacher, graft)]
    assert [run.state for run in runs] == ["SUCCEEDED", "SUCCEEDED"], [run.message for run in runs]
    (group,) = client.leaderboard().groups
    assert sorted(row.name for row in group.rows) == ["graft", "teacher"]
    sheet = Image.open(io.BytesIO(client.artifact(graft, "evaluate", "samples.png")))
    assert sheet.width > 300
    assert "graft_worker" in client.log(graft)
    _check_tracking(lab, client, graft)


@pytest.mark.large
def test_a_group_of_two_walks_the_stages_in_step(client: GraftlabClient) -> None:
    run_id = client.submit(document(name="pair", layers=[3], resources={"workers": 2})).run_id
    run = finished(client, run_id)
    assert run.state == "SUCCEEDED", run.message
    assert "RayTrainWorker" in client.log(run_id)


def _check_tracking(lab: RunningLab, client: GraftlabClient, run_id: str) -> None:
    """MLflow shows what our own database shows, one run a run, ended as ours ended."""
    os.environ["MLFLOW_TRACKING_TOKEN"] = first_key(lab.folder)
    mlflow = MlflowClient(f"{lab.address.url}/mlflow")

    def tracked() -> list[object]:
        experiment = mlflow.get_experiment_by_name("testbed/dit-fashion")
        return (
            mlflow.search_runs([experiment.experiment_id], f"tags.`graftlab.run_id` = '{run_id}'")
            if experiment
            else []
        )

    until(lambda: any(run.info.status == "FINISHED" for run in tracked()), 60)  # type: ignore[attr-defined]  # MLflow's
    (run,) = tracked()
    ours = client.run(run_id)
    assert run.data.metrics["fid40/fashion-cnn"] == pytest.approx(ours.metrics["fid40/fashion-cnn"])  # type: ignore[attr-defined]
    assert run.data.metrics["spend.device_seconds"] == pytest.approx(ours.spend.device_seconds)  # type: ignore[attr-defined]


@pytest.mark.large
def test_killing_worker_scheduler_and_api_changes_nothing_in_the_result(
    lab: RunningLab, client: GraftlabClient, backbone: Backbone, tmp_path: Path
) -> None:
    run_id = client.submit(document(name="battered", layers=[2], **SLOW)).run_id

    def finetuning() -> bool:
        progress = client.run(run_id).progress
        return progress is not None and progress.stage == "finetune" and progress.step > 20

    until(finetuning)
    kill(lab, is_part("scheduler"))
    kill(lab, is_part("api"))
    kill(lab, is_worker)
    run = finished(client, run_id)
    assert (run.state, run.attempt) == ("SUCCEEDED", 2), run.message
    assert (run.stages[0].stage, run.stages[0].stop_cause) == ("distill", "completed")
    distilled = [
        event for event in client.events(run_id) if event.event and event.event.body.type == "stage_done"
    ]
    causes = [event.event.body.report.stop_cause for event in distilled if event.event]  # type: ignore[union-attr]
    assert causes.count("completed") == 3
    assert _model(lab.folder / "storage", run) == _undisturbed(tmp_path, backbone)


def _model(folder: Path, run: RunDetail) -> bytes:
    return (folder / f"models/{finetune_key(run.experiment)}/model.safetensors").read_bytes()


def _undisturbed(folder: Path, backbone: Backbone) -> bytes:
    """The same design carried out in this process, without a break."""
    spec = parse_submission(document(name="battered", layers=[2], **SLOW))
    ticket = RunTicket(run_id="r", attempt=1, work=spec, storage=str(folder))
    storage, meter = Storage(str(folder)), UsageMeter(spec, time.time())
    context = Context(
        ticket,
        storage,
        backbone,
        Group(Shard()),
        meter,
        StopCondition(storage, ticket, meter),
        EventLog(storage, ticket),
    )
    run_stages(context)
    return (folder / f"models/{finetune_key(spec)}/model.safetensors").read_bytes()


@pytest.mark.large
def test_a_running_run_is_cancelled_at_a_checkpoint(lab: RunningLab, client: GraftlabClient) -> None:
    long = {**SLOW, "finetune": {"steps": 100_000, "batch_size": 16, "images": 200}}
    run_id = client.submit(document(name="endless", layers=[4], **long)).run_id
    until(lambda: client.run(run_id).progress is not None)
    client.cancel(run_id)
    run = finished(client, run_id)
    assert (run.state, run.reason) == ("CANCELLED", "user_request")


def graft(lab: RunningLab, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """The command line as a user types it, in an empty folder."""
    environment = {**os.environ, "GRAFTLAB_URL": lab.address.url}
    return subprocess.run(
        [*GRAFT, *words], input=text, capture_output=True, text=True, env=environment, cwd=lab.folder
    )


@pytest.mark.parametrize("command", ["ls", "leaderboard", "operators", "backbones"])
def test_reading_commands_print_tables_and_json(lab: RunningLab, command: str) -> None:
    assert graft(lab, command).returncode == 0
    assert graft(lab, command, "--json").stdout.strip()[0] in "[{"


@pytest.mark.large
def test_a_backbone_is_analyzed_on_the_cluster(lab: RunningLab) -> None:
    words = ("--samples", "2", "--steps", "2", "--band", "6", "--band", "48", "--figure", "profile.png")
    done = graft(lab, "analyze", "testbed/dit-fashion", *words)
    assert done.returncode == 0, done.stderr
    assert "L48" in done.stdout
    assert Image.open(lab.folder / "profile.png").width > 500
    again = json.loads(graft(lab, "analyze", "testbed/dit-fashion", *words[:8], "--json").stdout)
    assert again["locality"][1]["blocks"] == pytest.approx([1.0] * 8)


def test_an_operator_is_checked_without_a_lab(tmp_path: Path) -> None:
    done = subprocess.run([*GRAFT, "check-operator", "mamba2", "--json"], capture_output=True, cwd=tmp_path)
    assert done.returncode == 0
    assert {"probe": "parameters", "ok": True, "seen": "formula 11,404, built 11,404"} in json.loads(
        done.stdout
    )


@pytest.mark.parametrize(
    ("words", "text", "line"),
    [
        (["plan", "missing.yaml"], "", "missing.yaml: No such file or directory"),
        (["plan", "."], "", ".: Is a directory"),
        (["submit", "-"], "a: [", "-: (document): cannot be read as JSON or YAML"),
        (["submit", "-"], "name: a\nbackbone: x\n", "-: /backbone: unknown backbone 'x'"),
        (["show", "zzzz"], "", "no runs have an id beginning with 'zzzz'"),
        (["lss"], "", "No such command 'lss'"),
        (["check-operator", "hyena_z"], "", "unknown operator 'hyena_z'; did you mean 'hyena_"),
    ],
)
def test_bad_input_is_exit_code_two_and_one_line(
    lab: RunningLab, words: list[str], text: str, line: str
) -> None:
    done = graft(lab, *words, text=text)
    assert done.returncode == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def test_a_lab_that_is_not_there_is_told_in_one_line(lab: RunningLab) -> None:
    done = graft(lab, "ls", "--url", "http://127.0.0.1:9")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "graft up" in done.stderr


def test_a_second_lab_on_the_same_folder_is_refused(lab: RunningLab, tmp_path: Path) -> None:
    held = lock(tmp_path)
    done = graft(lab, "up", "--data", str(tmp_path))
    held.close()
    assert done.returncode == 2
    assert "already running" in done.stderr


def test_problems_reach_users_of_the_client(client: GraftlabClient) -> None:
    with pytest.raises(ApiProblem) as caught:
        client.submit(document(backbone="nothing"))
    assert caught.value.problem["pointer"] == "/backbone"


def test_pages_are_drawn_by_a_real_browser(lab: RunningLab, client: GraftlabClient, tmp_path: Path) -> None:
    run_id = next(run.id for run in client.runs().runs if run.name == "graft")
    for page, words in (("/", "Leaderboard"), (f"/runs/{run_id}", "hyena_x")):
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
        ]
        flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}", "--dump-dom"]
        done = subprocess.run(
            ["chromium", *flags, client.login_link(page)], capture_output=True, text=True, timeout=60
        )
        assert words in done.stdout
        assert "graft" in done.stdout


def test_interrupting_the_lab_leaves_no_process_behind(lab: RunningLab) -> None:
    lab.process.send_signal(signal.SIGINT)
    assert lab.process.wait(60) == 130
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark_of(lab.folder):
                left.append(process.name())
        except (psutil.Error, OSError):
            continue
    assert left == []

"""`graft backbone`, `dataset` and `features` against a real application, a worker in this process."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import ApiProblem, GraftlabClient
from service.db.engine import Database
from service.settings import Settings
from tests.support.commands import Graft, command_line, serving_lab
from tests.support.registering import pipeline


@pytest.fixture
def database_kind() -> str:
    """What the command line does depends on no database."""
    return "sqlite"


@pytest.fixture
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline(tmp_path_factory.mktemp("models") / "mine")


@pytest.fixture
def lab(
    settings: Settings, database: Database, source: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GraftlabClient]:
    """A lab whose only import root holds the source."""
    settings = settings.model_copy(update={"import_roots": [source.parent]})
    with serving_lab(settings, database, monkeypatch) as client:
        yield client


@pytest.fixture
def graft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Graft:
    return command_line(monkeypatch, capsys)


def test_a_backbone_from_its_folder_to_its_removal(
    lab: GraftlabClient, graft: Graft, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    code, shown, _ = graft("backbone", "add", "mine", "mine", "--licence", "MIT", "--wait", "--json")
    made = json.loads(shown)
    assert (code, made["revision"], made["licence"], made["owner"]) == (0, 1, "MIT", "lab")
    assert made["card"]["depth"] == 8
    assert "mine" in graft("backbone", "ls")[1]
    listed = {each["name"]: each for each in json.loads(graft("backbone", "ls", "--json")[1])}
    assert listed["mine"]["size"] == made["size"]
    assert listed["testbed/dit-fashion"]["shipped"] is True
    told = graft("backbone", "show", "mine")[1]
    assert "8 blocks of" in told
    assert made["digest"] in told
    assert graft("backbone", "verify", "mine")[0] == 0
    code, shown, _ = graft("backbone", "rm", "mine", "--yes", "--json")
    assert (code, json.loads(shown)["revisions"]) == (0, [1])
    with pytest.raises(ApiProblem) as refused:
        lab.registered("backbones", "mine")
    assert refused.value.status == 404


def test_what_cannot_be_registered_ends_with_its_reason(
    lab: GraftlabClient, graft: Graft, source: Path, tmp_path: Path
) -> None:
    assert graft("backbone", "add", "mine", str(tmp_path))[0] == 2
    (source / "transformer" / "config.json").write_text("{}")
    code, _, told = graft("backbone", "add", "mine", str(source), "--wait")
    assert code == 1
    assert "failed:" in told


def test_data_sets_and_networks_are_listed_and_shown(lab: GraftlabClient, graft: Graft) -> None:
    assert "testbed/fashion-mnist" in graft("dataset", "ls")[1]
    assert "fashion-cnn" in graft("features", "ls")[1]
    assert json.loads(graft("features", "show", "fashion-cnn", "--json")[1])["shipped"] is True
    code, _, told = graft("dataset", "rm", "testbed/fashion-mnist", "--yes")
    assert code == 2
    assert "comes with a package" in told


def test_the_client_sends_what_encoding_and_training_ask_for(
    lab: GraftlabClient, graft: Graft, source: Path
) -> None:
    asked = ["--name", "flags", "--vae", "none", "--size", "64", "--held-out", "0.2", "--no-labels"]
    code, shown, told = graft("dataset", "encode", str(source.parent), *asked, "--json")
    assert code == 0, told
    work = json.loads(shown)["work"]
    assert (work["action"], work["vae"], work["encode"]["image_size"]) == ("encode", "none", 64)
    assert (work["encode"]["held_out"], work["encode"]["conditions"]) == (0.2, "none")
    assert graft("dataset", "encode", str(source.parent), "--name", "flags")[0] == 2
    code, _, told = graft("features", "train", "nosuch", "--name", "judge")
    assert code == 2
    assert "unknown data set" in told

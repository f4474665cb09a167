"""A user's own images and models, prepared by nobody, from files to the leaderboard and a study."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client import ApiProblem, GraftlabClient
from service.schemas.leaderboard import LeaderboardGroup
from service.schemas.runs import RunDetail
from tests.support.running_lab import RunningLab, running_lab, until

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_model"
pytestmark = [pytest.mark.large, pytest.mark.timeout(1500)]
SHORT = {
    "distill": {"steps": 20, "batch_size": 16, "held_out": 16, "images": 200, "warmup_steps": 0},
    "finetune": {"steps": 20, "batch_size": 16, "images": 200, "warmup_steps": 0},
    "evaluate": {"samples": 40, "sampling_steps": 10, "micro_batch": 20, "guidance": 1.0, "sampler": "ddim"},
}
EDITS = [{"replace": "attention", "layers": [1, 3], "with": {"kind": "hyena_x"}}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of ten classes."""
    folder = tmp_path_factory.mktemp("own")
    example("draw_images.py", folder / "images", "--each", 60)
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab"), {"GRAFTLAB_IMPORT_ROOTS": f'["{files}"]'}) as lab:
        yield lab


@pytest.fixture(scope="module")
def client(lab: RunningLab) -> GraftlabClient:
    return GraftlabClient(lab.address.url)


def without_testbed(folder: Path) -> Path:
    """Copy the packages into the folder, but for the embedded models."""
    for package in ("grafting_core", "workers", "service", "migrations"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("testbed"))
    # An editable install would find the folder of the source tree in place of the missing one.
    (folder / "grafting_core" / "testbed").mkdir()
    (folder / "grafting_core" / "testbed" / "__init__.py").write_text('raise ImportError("deleted")')
    return folder


def example(name: str, *words: object) -> None:
    """Run a script of the example, which does not import this project."""
    command = [sys.executable, str(EXAMPLE / name), *map(str, words)]
    subprocess.run(command, check=True, timeout=400, env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"})


def trained(files: Path, name: str, *words: str) -> Path:
    """A small DiT that plain diffusers code has trained on the images."""
    example("train_dit.py", files / "images", files / name, "--vae-seconds", 30, "--seconds", 45, *words)
    return files / name


def succeeded(client: GraftlabClient, run_id: str) -> RunDetail:
    until(lambda: client.run(run_id).ended_at is not None, 600)
    run = client.run(run_id)
    assert run.state == "SUCCEEDED", run.message
    return run


def register(client: GraftlabClient, kind: str, **document: Any) -> dict[str, Any]:
    """Register and return the card."""
    succeeded(client, client.register(kind, document).run_id)  # type: ignore[arg-type]  # one of three kinds
    card = client.registered(kind, document["name"]).card  # type: ignore[arg-type]
    assert card is not None
    return card


def board_of(client: GraftlabClient, backbone: str) -> LeaderboardGroup:
    [group] = [group for group in client.leaderboard().groups if group.backbone == backbone]
    return group


def design(name: str, backbone: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "backbone": backbone, "edits": EDITS, **SHORT, **changes}


def test_an_own_latent_model_is_encoded_judged_grafted_and_searched(
    client: GraftlabClient, files: Path
) -> None:
    folder = trained(files, "latent-dit")
    encode = {"image_size": 64, "held_out": 0.2}
    data = register(
        client,
        "datasets",
        name="shapes",
        images=str(files / "images"),
        vae=str(folder / "vae"),
        encode=encode,
    )
    assert (data["training"], data["held_out"], data["shape"]) == (480, 120, [4, 16, 16])
    network = register(client, "features", name="shapes-net", dataset="shapes", train={"steps": 150})
    assert network["accuracy"] > 0.3
    card = register(
        client, "backbones", name="own", path=str(folder), dataset="shapes", licence="MIT", private=True
    )
    assert (card["depth"], card["num_classes"], card["objective"]) == (6, 10, "epsilon")
    evaluate = {**SHORT["evaluate"], "feature_network": "shapes-net"}
    runs = [
        client.submit(design(name, "own", edits=edits, evaluate=evaluate)).run_id
        for name, edits in (("teacher", []), ("half-hyena", EDITS))
    ]
    for run in runs:
        succeeded(client, run)
    group = board_of(client, "own")
    assert {row.name for row in group.rows} == {"teacher", "half-hyena"}
    assert group.metric == "fid40/shapes-net"
    assert group.oracle is not None
    assert 0 < group.oracle.value < min(row.value for row in group.rows)
    _study_of_eight_trials(client, evaluate)
    _unseen_by_another(client)


def _study_of_eight_trials(client: GraftlabClient, evaluate: dict[str, Any]) -> None:
    study = client.create_study(
        {
            "name": "own-study",
            "backbone": "own",
            "space": {
                "attention": ["keep", "hyena_x"],
                "mlp": ["keep", {"kind": "mlp", "ratio": 3}],
                "groups": {"attention": [[0, 1], [2, 3], [4, 5]], "mlp": [[0, 1], [2, 3], [4, 5]]},
            },
            "objectives": [{"minimize": "fid40"}],
            "screening": {"trials": 8, "rungs": ["loss_gap"], "loss_draws": 64},
            "promote": 1,
            "baselines": [],
            **SHORT,
            "evaluate": evaluate,
        }
    ).study_id
    until(lambda: client.study(study).state in ("DONE", "FAILED"), 900)
    detail = client.study(study)
    assert detail.state == "DONE", detail.message
    assert detail.trials == 8


def _unseen_by_another(client: GraftlabClient) -> None:
    """Another user hears of neither the private backbone nor its runs, and cannot graft it."""
    key = client.make_key("bob", role="runner", sees="own").key
    bob = GraftlabClient(client.url, key=key)
    assert "own" not in {found.name for found in bob.all_registered("backbones")}
    with pytest.raises(ApiProblem, match="own"):
        bob.registered("backbones", "own")
    with pytest.raises(ApiProblem, match="unknown backbone"):
        bob.submit(design("stolen", "own"))
    assert [group.backbone for group in bob.leaderboard().groups] == []


@pytest.mark.parametrize(
    ("name", "words", "changes", "objective"),
    [
        ("pixels", ("--pixels",), {"sampler": "ddim"}, "epsilon"),
        ("flow", ("--pixels", "--flow"), {"sampler": "flow_euler"}, "flow_velocity"),
        ("unlabelled", ("--pixels", "--no-labels"), {"sampler": "ddim"}, "epsilon"),
    ],
)
def test_pixels_a_flow_and_a_model_without_labels_reach_the_board(
    client: GraftlabClient,
    files: Path,
    name: str,
    words: tuple[str, ...],
    changes: dict[str, Any],
    objective: str,
) -> None:
    folder = trained(files, f"{name}-dit", *words)
    labelled = "--no-labels" not in words
    encode = {"image_size": 64, "held_out": 0.2, "conditions": "labels" if labelled else "none"}
    data = f"shapes-{name}"
    register(client, "datasets", name=data, images=str(files / "images"), vae="none", encode=encode)
    if "shapes-judge" not in {found.name for found in client.all_registered("features")}:
        register(client, "features", name="shapes-judge", dataset=data, train={"steps": 100})
    card = register(client, "backbones", name=name, path=str(folder), dataset=data, vae="none")
    assert (card["objective"], card["autoencoder"]) == (objective, "none")
    assert card["num_classes"] == (10 if labelled else 0)
    evaluate = {**SHORT["evaluate"], "feature_network": "shapes-judge", **changes}
    succeeded(client, client.submit(design(f"{name}-graft", name, evaluate=evaluate)).run_id)
    [row] = board_of(client, name).rows
    assert row.value > 0


def test_a_lab_without_the_embedded_models_grafts_a_users_own(files: Path, tmp_path: Path) -> None:
    folder = trained(files, "alone-dit", "--pixels")
    code, data = without_testbed(tmp_path / "code"), tmp_path / "data"
    data.mkdir()
    with running_lab(data, {"GRAFTLAB_IMPORT_ROOTS": f'["{files}"]'}, code) as lab:
        client = GraftlabClient(lab.address.url)
        assert {found.name for found in client.all_registered("backbones")} == {"dit-xl-2-256"}
        encode = {"image_size": 64, "held_out": 0.2}
        register(client, "datasets", name="shapes", images=str(files / "images"), vae="none", encode=encode)
        register(client, "features", name="judge", dataset="shapes", train={"steps": 60})
        register(client, "backbones", name="own", path=str(folder), dataset="shapes", vae="none")
        evaluate = {**SHORT["evaluate"], "feature_network": "judge"}
        succeeded(client, client.submit(design("graft", "own", evaluate=evaluate)).run_id)
        assert [row.name for row in board_of(client, "own").rows] == ["graft"]

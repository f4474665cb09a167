"""From a folder of pictures to a ranked graft of an own model, every step over REST."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from fastapi.testclient import TestClient
from torch import nn

from tests.support import registering
from tests.support.builders import document
from tests.support.clients import as_user
from tests.support.pictures import picture_folder
from tests.support.registering import InProcess, register

lab, models, settings = registering.lab, registering.models, registering.settings
nothing_stays = registering.nothing_stays
PICTURES = {"image_size": 16, "held_out": 9}
QUICK: dict[str, Any] = {
    "distill": {"steps": 3, "batch_size": 8, "held_out": 8, "images": 30},
    "finetune": {"steps": 3, "batch_size": 8, "images": 30},
    "evaluate": {"samples": 20, "sampling_steps": 2, "micro_batch": 10},
}


@pytest.fixture
def database_kind() -> str:
    """The registry's queries are tested on both; here the work is."""
    return "sqlite"


def pixel_dit(folder: Path, classes: int = 3, side: int = 16) -> Path:
    """A transformer on pixels as diffusers saves it, with weights that do something."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=side,
        patch_size=4,
        num_embeds_ada_norm=classes,
    )
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.05)
    transformer.save_pretrained(folder / "transformer")
    return folder


def design(backbone: str, **more: Any) -> dict[str, Any]:
    """A graft that takes a second."""
    return document(backbone=backbone, layers=[1], **QUICK, **more)


def succeeded(client: TestClient, run: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/api/v1/runs/{run}").json()
    assert found["state"] == "SUCCEEDED", found["message"]
    return found


def encoded(client: TestClient, lab: InProcess, models: Path, name: str = "flags", **more: Any) -> None:
    images = str(picture_folder(models / f"{name}-pictures", classes=3, each=20))
    asked = {"name": name, "images": images, "vae": "none", "encode": PICTURES, **more}
    succeeded(client, register(client, lab, "datasets", **asked))


def test_pictures_become_a_data_set_a_judge_and_the_ground_of_a_ranked_graft(
    client: TestClient, lab: InProcess, models: Path
) -> None:
    encoded(client, lab, models)
    data = client.get("/api/v1/datasets/flags").json()
    assert (data["card"]["training"], data["card"]["held_out"]) == (51, 9)
    train = {"name": "judge", "dataset": "flags", "train": {"steps": 30, "batch_size": 16}}
    succeeded(client, register(client, lab, "features", **train))
    judge = client.get("/api/v1/features/judge").json()
    assert judge["card"]["dataset"] == {"name": "flags", "digest": data["digest"]}
    assert judge["figures"]["accuracy"] > 1 / 3
    own = {"name": "dit", "path": str(pixel_dit(models / "dit")), "vae": "none", "dataset": "flags"}
    succeeded(client, register(client, lab, "backbones", **own, licence="CC0-1.0"))
    card = client.get("/api/v1/backbones/dit").json()["card"]
    assert (card["autoencoder"], card["num_images"], card["held_out"]["images"]) == ("none", 51, 9)
    run = client.post("/api/v1/experiments", json=document(backbone="dit", layers=[1], **QUICK)).json()[
        "run_id"
    ]
    lab.round()
    found = succeeded(client, run)
    ref = {"name": "flags", "digest": data["digest"]}
    assert {found["work"][stage]["dataset"]["digest"] for stage in QUICK} == {data["digest"]}
    assert found["work"]["evaluate"]["dataset"] == ref
    assert found["work"]["evaluate"]["feature_digest"] == judge["digest"]
    assert found["metrics"]["fid20/judge"] > 0
    [group] = client.get("/api/v1/leaderboard").json()["groups"]
    assert (group["metric"], group["rows"][0]["run_id"]) == ("fid20/judge", run)
    assert group["licence"] == "CC0-1.0"
    assert "Licence of the backbone: CC0-1.0" in client.get("/", headers={"Accept": "text/html"}).text
    for needed in ("datasets/flags", "features/judge", "backbones/dit"):
        answer = client.delete(f"/api/v1/{needed}")
        assert answer.status_code == (409 if needed == "datasets/flags" else 200), needed
    assert client.delete("/api/v1/datasets/flags").status_code == 200
    assert client.get(f"/api/v1/runs/{run}").json()["metrics"] == found["metrics"]


def test_what_does_not_fit_the_backbone_is_refused_at_submission(
    client: TestClient, lab: InProcess, models: Path
) -> None:
    encoded(client, lab, models)
    small = {"name": "small", "path": str(pixel_dit(models / "small", side=8)), "vae": "none"}
    few = {"name": "few", "path": str(pixel_dit(models / "few", classes=2)), "vae": "none"}
    for asked in (small, few):
        succeeded(client, register(client, lab, **asked))
    expected = {
        "small": "has samples of 3 x 16 x 16, small takes 3 x 8 x 8",
        "few": "has 3 classes, few takes 2",
        "testbed/dit-fashion": "was encoded by none",
    }
    for backbone, message in expected.items():
        answer = client.post("/api/v1/experiments", json=design(backbone, dataset="flags"))
        assert (answer.status_code, answer.json()["pointer"]) == (422, "/dataset"), backbone
        assert backbone.startswith("testbed") or message in answer.text, answer.text
    none = client.post("/api/v1/experiments", json=design("small"))
    assert "name a registered one" in none.json()["detail"]
    budget = {"budget": {"share_of_pretraining": 0.1}}
    shared = client.post(
        "/api/v1/experiments", json=document(backbone="small", dataset="flags", **QUICK, **budget)
    )
    assert shared.status_code == 422


def test_a_private_data_set_names_nobody_elses_run(client: TestClient, lab: InProcess, models: Path) -> None:
    ann, bob = as_user(client, "ann", registers=True), as_user(client, "bob")
    encoded(ann, lab, models, "anns-pictures", private=True)
    assert ann.get("/api/v1/datasets/anns-pictures").status_code == 200
    for path in ("datasets", "datasets/anns-pictures", "runs"):
        assert "anns-pictures" not in bob.get(f"/api/v1/{path}").text.replace("'anns-pictures'", "")
    asked = document(backbone="testbed/dit-fashion", dataset="anns-pictures")
    refused = bob.post("/api/v1/experiments", json=asked)
    assert refused.json()["errors"][0]["code"] == "unknown-dataset"

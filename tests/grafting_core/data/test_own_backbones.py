"""A user's images and a user's backbone: encoded by its own autoencoder or as pixels, they fit each other."""

from pathlib import Path

import pytest
import torch

from grafting_core.backbones.registered import load_registered, read_card
from grafting_core.data.encode import encode_folder
from grafting_core.data.latent_folder import load_latent_folder
from grafting_core.data.latents import Latents, predict_batch
from grafting_core.diffusion.objective import objective_of
from grafting_core.specs.encoding import EncodeSettings
from tests.support.diffusers_folders import PIXELS, UNLABELLED, change_config, write_folder
from tests.support.pictures import picture_folder

SETTINGS = EncodeSettings(name="own/shapes", image_size=16, held_out=0.25)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {"image_size": 32}),
        ({}, {"image_size": 32, "values": "samples"}),
        ({"vae": False, **PIXELS}, {}),
        ({"vae": False, **PIXELS, **UNLABELLED}, {"conditions": "none"}),
        ({"vae": False, **PIXELS, **UNLABELLED}, {}),
    ],
    ids=["latents", "samples", "pixels", "pixels without labels", "labels that are not needed"],
)
def test_a_backbone_trains_on_images_that_its_own_autoencoder_encoded(
    tmp_path: Path, changes: dict, settings: dict
) -> None:
    folder = write_folder(tmp_path / "model", **changes)
    objective = "flow_velocity" if "vae" in changes else None
    card = read_card(folder, name="own/dit", objective=objective)
    backbone = load_registered(card, CPU)
    source = picture_folder(tmp_path / "images", classes=5, each=4)
    vae = folder / "vae" if (folder / "vae").is_dir() else None
    data = encode_folder(source, tmp_path / "set", SETTINGS.model_copy(update=settings), vae)
    assert data.autoencoder == card.parts.get("autoencoder")
    dataset = load_latent_folder(data)
    for part in (dataset.latents(backbone, 10), dataset.held_out(backbone)):
        batch = Latents.of(backbone, part).batch("finetune", 0, 0, 5)
        with torch.no_grad():
            output = predict_batch(backbone, batch)
        loss = objective_of(card).loss(output, batch.clean, batch.noise, batch.timesteps)
        assert loss.shape == (5,)
        assert torch.isfinite(loss).all()


def test_latents_of_an_autoencoder_with_another_scale_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    source = picture_folder(tmp_path / "images", classes=5, each=4)
    settings = SETTINGS.model_copy(update={"image_size": 32})
    data = encode_folder(source, tmp_path / "set", settings, folder / "vae")
    change_config(folder / "vae", scaling_factor=0.7)
    backbone = load_registered(read_card(folder, name="own/dit"), CPU)
    with pytest.raises(ValueError, match="'own/shapes' does not fit backbone 'own/dit': it was encoded with"):
        load_latent_folder(data).latents(backbone, 10)

"""The networks draw at every resolution, guidance and steps do what they should, the detector can learn."""

import pytest
import torch

from grafting_core.diffusion.schedule import add_noise, linear_schedule
from grafting_core.testbed.emoji.assets import emoji_atlas, load_transformer, transformer_folder
from grafting_core.testbed.emoji.autoencoder import PatchAutoencoder
from grafting_core.testbed.emoji.detector import Detector
from grafting_core.testbed.emoji.recipe.detector import detection_loss
from grafting_core.testbed.emoji.recipe.evaluate import detector_accuracy
from grafting_core.testbed.emoji.recipe.source import Source
from grafting_core.testbed.emoji.sampling import Painter, ddim_step, visits
from grafting_core.testbed.emoji.text_encoder import TextEncoder
from grafting_core.testbed.emoji.transformer import RESOLUTIONS, build_transformer, set_resolution


def painter(resolution: int, **more: float) -> Painter:
    torch.manual_seed(0)
    transformer = build_transformer(resolution, depth=1).eval()
    return Painter(transformer, TextEncoder().eval(), PatchAutoencoder().eval(), resolution, steps=2, **more)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_one_set_of_weights_draws_at_every_resolution(resolution: int) -> None:
    base = build_transformer(64, depth=1)
    own = build_transformer(resolution, depth=1)
    set_resolution(base, resolution)
    torch.testing.assert_close(base.pos_embed.pos_embed, own.pos_embed.pos_embed)
    assert own.pos_embed.pos_embed.shape[1] == (resolution // 8) ** 2
    assert base.load_state_dict(own.state_dict()).missing_keys == []


def test_a_picture_depends_on_its_caption_and_seed_alone() -> None:
    texts, maker = ["a photo of a dog", "a photo of two cats"], painter(64)
    pair = maker.paint(texts, [1, 2])
    assert pair.shape == (2, 3, 64, 64)
    torch.testing.assert_close(pair[1:], maker.paint(texts[1:], [2]), atol=1e-4, rtol=1e-4)
    assert not torch.equal(pair[1:], maker.paint(texts[1:], [3]))
    assert not torch.equal(pair[1:], maker.paint(texts[:1], [2]))


def test_guidance_zero_ignores_the_caption() -> None:
    maker = painter(64, guidance=0.0)
    first, second = (maker.paint([text], [1]) for text in ("a photo of a dog", ""))
    torch.testing.assert_close(first, second)


def test_exact_noise_leads_to_the_clean_latents() -> None:
    clean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    start = torch.full((2,), 999)
    latents = add_noise(linear_schedule(), clean, noise, start)
    places = []
    for timestep, signal, following in visits(25):
        places.append(timestep)
        exact = (latents - signal**0.5 * clean) / (1 - signal) ** 0.5
        latents = ddim_step(latents, exact, signal, following)
    torch.testing.assert_close(latents, clean, atol=1e-4, rtol=1e-4)
    assert places[0] == 999
    assert places[-1] == 0
    assert len(places) == 25


def test_the_detector_learns_scenes_by_heart() -> None:
    source = Source(emoji_atlas(), seed=0)
    scenes = source.batch(0, 4, 64)
    torch.manual_seed(0)
    model = Detector()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(60):
        optimiser.zero_grad()
        detection_loss(model(scenes.pictures), scenes.layout).backward()
        optimiser.step()
    accuracy = detector_accuracy(model.eval(), source, 64, 4)
    assert accuracy == {"objects_found": 1.0, "objects_found_with_colour": 1.0, "pictures_without_error": 1.0}


def test_other_resolutions_are_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="64, 192, 256 pixels, not 128"):
        transformer_folder(128)


def test_missing_weights_name_the_command_that_makes_them(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"grafting_core\.testbed\.emoji\.recipe"):
        load_transformer(64, tmp_path)

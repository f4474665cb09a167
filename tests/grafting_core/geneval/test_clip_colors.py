"""Colours by CLIP are those of a second implementation on a small model of the same kind."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from grafting_core.evaluation.geneval.clip_colors import ClipColors, load_clip_colors, pixels_of
from grafting_core.evaluation.geneval.detections import Detection
from grafting_core.evaluation.geneval.pictures import Picture
from grafting_core.evaluation.geneval.self_test import DISCS, check_colors
from grafting_core.specs.geneval import COLORS
from tests.support.tiny_clip import SIDE, write_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def colors(folder: Path) -> ClipColors:
    return load_clip_colors(folder, "cpu")


def tokens_of(text: str, folder: Path) -> list[int]:
    """Tokens by hand: letters, but for the two merges of the vocabulary."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    rows = [vocabulary["<|startoftext|>"]]
    for word in text.replace("-", " - ").split():
        symbols = f"{' '.join(word)}</w>".replace("r e ", "re ").replace("re d</w>", "red</w>").split()
        rows += [vocabulary[symbol] for symbol in symbols]
    return [*rows, vocabulary["<|endoftext|>"]]


TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")


@torch.no_grad()
def second_implementation(folder: Path, images: list[Image.Image], name: str) -> np.ndarray:
    """Logits of the ten colours in numpy: one text and one image at a time, without padding."""
    model, rows = CLIPModel.from_pretrained(folder).eval(), []
    for color in COLORS:
        embeddings = []
        for template in TEMPLATES:
            tokens = torch.tensor([tokens_of(template.format(color, name), folder)])
            last = model.text_model(input_ids=tokens).last_hidden_state[:, -1]
            embedding = (last @ model.text_projection.weight.T)[0].numpy()
            embeddings.append(embedding / np.linalg.norm(embedding))
        mean = np.mean(embeddings, axis=0)
        rows.append(mean / np.linalg.norm(mean))
    features = []
    for image in images:
        pooled = model.vision_model(pixels_of(image, SIDE)[None]).pooler_output
        feature = (pooled @ model.visual_projection.weight.T)[0].numpy()
        features.append(feature / np.linalg.norm(feature))
    return 100 * np.stack(features) @ np.stack(rows).T


@pytest.mark.parametrize("name", ["dog", "teddy bear"])
def test_the_colour_is_the_nearest_of_the_averaged_descriptions(
    colors: ClipColors, folder: Path, name: str
) -> None:
    paints = [tuple(row) for row in np.random.default_rng(0).integers(0, 256, (20, 3)).tolist()]
    images = [Image.new("RGB", (20, 24), paint) for paint in paints]
    expected = second_implementation(folder, images, name)
    np.testing.assert_allclose(colors.logits(images, name).numpy(), expected, atol=1e-3)
    best = [COLORS[int(row)] for row in expected.argmax(1)]
    assert colors.colors_of(images, name) == best
    assert len(set(best)) > 1


def test_objects_are_classified_by_their_crops(colors: ClipColors) -> None:
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    boxes = [(0.0, 0.0, 20.0, 20.0), (10.0, 5.0, 40.0, 40.0)]
    picture = Picture(Path("0.png"), np.asarray(image), image, False)
    found = colors.classify(picture, "dog", [Detection("dog", box, 0.9) for box in boxes])
    assert found == colors.colors_of([image.crop(box) for box in boxes], "dog")


@pytest.mark.parametrize("size", [(16, 16), (40, 20), (21, 64), (1, 9)])
def test_crops_are_scaled_by_their_short_side_and_cut_in_the_centre(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (255, 0, 128))
    pixels = pixels_of(image, SIDE)
    assert pixels.shape == (3, SIDE, SIDE)
    expected = [(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258, (128 / 255 - 0.40821073) / 0.27577711]
    for channel, value in zip(pixels, expected, strict=True):
        assert channel.unique().tolist() == pytest.approx([value], rel=1e-5)


def test_the_centre_is_what_is_kept() -> None:
    image = Image.new("RGB", (3 * SIDE, SIDE), "red")
    image.paste((0, 0, 255), (SIDE, 0, 2 * SIDE, SIDE))
    assert pixels_of(image, SIDE)[2].min() > 1


def test_a_folder_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no CLIP"):
        load_clip_colors(tmp_path, "cpu")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"holds no whole CLIP; it lacks text_projection\.weight"):
        load_clip_colors(tmp_path, "cpu")


class KnownColors:
    """Names the colours of discs from their file names, but for those that it is to confuse."""

    def __init__(self, confused: int) -> None:
        self.confused = [*DISCS][:confused]

    def classify(self, picture: Picture, name: str, objects: list[Detection]) -> list[str]:
        color = picture.file.name.split()[0]
        assert picture.pixels[112, 112].tolist() == [*DISCS[color]]
        return ["pink" if color in self.confused else color for _ in objects]


def test_the_self_test_of_colours_wants_four_of_six_discs(colors: ClipColors) -> None:
    check_colors(KnownColors(0))
    check_colors(KnownColors(2))
    with pytest.raises(ValueError, match="of six discs, red is called pink, yellow is called pink, green is"):
        check_colors(KnownColors(3))
    with pytest.raises(ValueError, match="the colour classifier's self-test failed"):
        check_colors(colors)

"""Scenes hold what their captions say, where their boxes say, and come from the seed alone."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from grafting_core.testbed.emoji.assets import emoji_atlas
from grafting_core.testbed.emoji.atlas import RAMPS, Atlas, load_atlas
from grafting_core.testbed.emoji.detector import Detection
from grafting_core.testbed.emoji.prompts import captions, scene_table
from grafting_core.testbed.emoji.recipe.source import Source
from grafting_core.testbed.emoji.recipe.tiles import draw_atlas
from grafting_core.testbed.emoji.scenes import BORDER, draw_masks
from grafting_core.testbed.emoji.scoring import relations
from grafting_core.testbed.emoji.vocabulary import CLASSES, COLOURS, RELATIONS


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return emoji_atlas()


@pytest.fixture(scope="module")
def source(atlas: Atlas) -> Source:
    return Source(atlas, seed=0, stream=7)


def rows_of(task: str, count: int) -> torch.Tensor:
    rows = [row for row, caption in enumerate(captions()) if caption.task == task]
    return torch.tensor(rows[:: max(1, len(rows) // count)][:count])


def test_a_step_has_the_same_bytes_every_time_and_no_other_step_has_them(source: Source) -> None:
    first, again, other = (source.batch(step, 6, 64) for step in (3, 3, 4))
    assert torch.equal(first.pictures, again.pictures)
    assert torch.equal(first.rows, again.rows)
    assert not torch.equal(first.pictures, other.pictures)
    assert first.pictures.shape == (6, 3, 64, 64)
    assert -1 <= first.pictures.min() < first.pictures.max() <= 1


def test_the_same_scene_is_drawn_at_every_resolution(source: Source) -> None:
    rows = torch.tensor([0, 1_000, 9_000])
    small, large = (source.of_rows(rows, 5, resolution).pictures for resolution in (64, 256))
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert (small - shrunk).abs().mean() < 0.02


@pytest.mark.parametrize("resolution", [64, 192])
def test_boxes_are_where_the_masks_are(source: Source, atlas: Atlas, resolution: int) -> None:
    scenes = source.batch(11, 12, resolution)
    masks = draw_masks(scenes.layout, atlas, resolution)
    assert (masks.sum(1) <= 1).all()
    for masks_of_one, present, boxes in zip(
        masks, scenes.layout.present, scenes.layout.boxes * resolution, strict=True
    ):
        assert not masks_of_one[~present].any()
        for mask, box in zip(masks_of_one[present], boxes[present], strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            seen = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (seen - box).abs().max() < 2 + resolution / 64


def test_objects_lie_inside_and_apart(source: Source) -> None:
    layout = source.of_rows(rows_of("counting", 120), 2, 64).layout
    boxes = layout.boxes[layout.present]
    assert boxes.min() >= BORDER - 1e-5
    assert boxes.max() <= 1 - BORDER + 1e-5
    masks = draw_masks(layout, source.atlas, 64)
    whole = masks.flatten(2).sum(2)[layout.present]
    assert (whole > 25).all()


def test_relations_hold_by_genevals_own_rule(source: Source) -> None:
    rows = rows_of("position", 200)
    boxes = source.of_rows(rows, 4, 64).layout.boxes
    for row, (reference, subject, *_) in zip(rows.tolist(), boxes.tolist(), strict=True):
        relation = captions()[row].relation
        assert relation is not None
        target, found = (Detection("x", None, tuple(box), 1.0) for box in (reference, subject))
        assert RELATIONS[relation] in relations(found, target)


def test_tints_look_like_their_names(source: Source, atlas: Atlas) -> None:
    rows = rows_of("colors", 400)
    scenes = source.of_rows(rows, 6, 64)
    masks = draw_masks(scenes.layout, atlas, 64)[:, 0]
    ramps = torch.tensor([RAMPS[colour] for colour in COLOURS])
    places = torch.linspace(0, 1, 9)[:, None, None]
    shades = torch.lerp(ramps[:, 0], ramps[:, 1], places)  # [9, colours, 3]
    right = 0
    for picture, mask, row in zip(scenes.pictures, masks, rows.tolist(), strict=True):
        pixels = (picture[:, mask].T + 1) / 2
        distance = (pixels[:, None, None] - shades[None]).norm(dim=-1).amin(1).mean(0)
        right += int(distance.argmin()) == captions()[row].colours[0]
    assert right >= 0.95 * len(rows)


def test_rows_in_any_order_show_all_their_objects(source: Source, atlas: Atlas) -> None:
    rows = torch.tensor([9_000, 0, 1_650, 1_719])
    layout = source.of_rows(rows, 8, 64).layout
    assert layout.present.sum(1).tolist() == scene_table().counts[rows].tolist()
    assert (draw_masks(layout, atlas, 64).flatten(2).any(2) == layout.present).all()


def test_a_picture_of_another_size_is_no_atlas(tmp_path: Path) -> None:
    Image.new("RGBA", (128, 128)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="5 rows of 8 tiles"):
        load_atlas(tmp_path / "small.png")


def test_without_the_font_the_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="fonts-noto-color-emoji"):
        draw_atlas(tmp_path / "atlas.png", font=tmp_path / "none.ttf")


def test_every_class_has_a_tile_that_fills_its_longer_side(atlas: Atlas) -> None:
    assert len(atlas.tiles) == len(CLASSES) >= 24
    assert (atlas.extents.amax(1) > 0.97).all()
    assert (atlas.extents.amin(1) > 0.3).all()

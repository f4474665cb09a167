"""Sample grid: images of teacher and graft from the same noise and labels, one class per column."""

import io
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from grafting_core.backbones.base import Backbone
from grafting_core.data.datasets import dataset_of
from grafting_core.diffusion.sampling import sample_images
from grafting_core.specs.plans import EvaluationProtocol

ROWS, MAX_COLUMNS = 3, 10
"""Columns show the first classes, which share batches and so need few forwards."""
SMALL = 64
"""Images up to this height are shown at twice their size."""
GAP = 4
LABEL_HEIGHT = 22
INK, PAPER = "#1c1c1c", "#ffffff"


@dataclass(frozen=True)
class SampleGrid:
    """uint8 images [rows, columns, H, W], or with 3 channels last, of one model, one class per column."""

    images: Tensor

    def render_comparison(self, graft: "SampleGrid", name: str) -> bytes:
        """PNG with this grid as the teacher's rows above the graft's; equal grids are drawn once."""
        parts = [("teacher", self.images)]
        if not torch.equal(self.images, graft.images):
            parts.append((name, graft.images))
        canvas = _stack([_panel(title, images) for title, images in parts])
        buffer = io.BytesIO()
        canvas.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()


def sample_grid(backbone: Backbone, transformer: nn.Module, protocol: EvaluationProtocol) -> SampleGrid:
    """`ROWS` samples of up to `MAX_COLUMNS` classes, balanced, with the protocol's own sampler and seed.

    A backbone without classes gets `MAX_COLUMNS` columns of samples.
    """
    balanced = protocol.model_copy(update={"labels": "balanced"})
    classes = backbone.card.num_classes or MAX_COLUMNS
    columns = min(classes, MAX_COLUMNS)
    indices = [row * classes + column for row in range(ROWS) for column in range(columns)]
    images = sample_images(backbone, transformer, balanced, indices)
    named = protocol.dataset
    if (named or backbone.card.dataset) is not None and dataset_of(backbone.card, named).inverted:
        images = 255 - images
    return SampleGrid(images.unflatten(0, (ROWS, columns)))


def _panel(title: str, images: Tensor) -> Image.Image:
    rows, columns = images.shape[:2]
    height, width = (side * (2 if images.shape[2] <= SMALL else 1) for side in images.shape[2:4])
    panel = Image.new("RGB", (columns * (width + GAP) + GAP, LABEL_HEIGHT + rows * (height + GAP)), PAPER)
    ImageDraw.Draw(panel).text(
        (GAP, GAP), title.encode("ascii", "replace").decode()[:60], fill=INK, font_size=13
    )
    for row in range(rows):
        for column in range(columns):
            tile = Image.fromarray(images[row, column].numpy())
            place = (GAP + column * (width + GAP), LABEL_HEIGHT + row * (height + GAP))
            panel.paste(tile.resize((width, height), Image.Resampling.NEAREST), place)
    return panel


def _stack(panels: list[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (panels[0].width, sum(panel.height for panel in panels)), PAPER)
    top = 0
    for panel in panels:
        canvas.paste(panel, (0, top))
        top += panel.height
    return canvas

"""Train the detector on scenes and their reconstructions, blurred, noised and with changed contrast."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, cross_entropy, interpolate

from grafting_core.testbed.emoji.autoencoder import PatchAutoencoder
from grafting_core.testbed.emoji.detector import GRID, Detector
from grafting_core.testbed.emoji.recipe.settings import Settings, autocast, scaled_rate
from grafting_core.testbed.emoji.recipe.source import Source
from grafting_core.testbed.emoji.recipe.trainer import Rate, Trainer
from grafting_core.testbed.emoji.scenes import Layout
from grafting_core.testbed.emoji.transformer import BASE_RESOLUTION, RESOLUTIONS

PEAK_RATE = 1e-3
BOX_WEIGHT = 2.0
COLOUR_WEIGHT = 0.5


def detector_trainer(
    settings: Settings, source: Source, autoencoder: PatchAutoencoder, work: Path
) -> Trainer:
    """Trainer: three of five batches at 64 pixels, one each at 192 and 256; half of them reconstructed."""
    torch.manual_seed(settings.seed + 1)
    model = Detector().to(source.device)
    batch = settings.batches["detector"]

    def loss(step: int, progress: float) -> Tensor:
        resolution = (BASE_RESOLUTION, RESOLUTIONS[1], BASE_RESOLUTION, RESOLUTIONS[2], BASE_RESOLUTION)[
            step % 5
        ]
        scenes = source.batch(step, batch, resolution)
        with torch.no_grad(), autocast(source.device):
            pictures = autoencoder.reconstruct(scenes.pictures) if step % 2 else scenes.pictures
            pictures = _augment(pictures.float(), source.generator(step, source.device, use=2))
        with autocast(source.device):
            output = model(pictures)
        return detection_loss(output, scenes.layout)

    return Trainer(
        "detector",
        model,
        Rate(scaled_rate(PEAK_RATE, "detector", batch)),
        settings.budgets["detector"],
        loss,
        work,
        batch,
        ema_decay=0.998,
    )


def _augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Contrast and brightness by a tenth, blur in half of the images, noise up to 0.06."""
    draw = torch.rand((len(pictures), 4, 1, 1, 1), generator=generator, device=pictures.device)
    changed = pictures * (0.9 + 0.2 * draw[:, 0]) + 0.2 * (draw[:, 1] - 0.5)
    small = avg_pool2d(changed, 2)
    blurred = interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False)
    changed = torch.lerp(changed, blurred, (2 * draw[:, 2] - 1).clamp(min=0))
    noise = torch.randn(changed.shape, generator=generator, device=changed.device)
    return changed + 0.06 * draw[:, 3] * noise


def detection_loss(output: tuple[Tensor, Tensor, Tensor], layout: Layout) -> Tensor:
    """Loss per object: cross-entropy of centres, and box and colour errors in the cells around them."""
    logits, boxes, colours = output
    picture, place = layout.present.nonzero().unbind(1)
    labels = layout.classes[picture, place]
    cells = (layout.centres[picture, place] * GRID).long().clamp(0, GRID - 1)
    target, weight = torch.zeros_like(logits), torch.ones_like(logits)
    shift = torch.arange(-1, 2, device=logits.device)
    columns = (cells[:, :1, None] + shift.view(1, 3, 1)).expand(-1, 3, 3).flatten(1)
    rows = (cells[:, 1:, None] + shift.view(1, 1, 3)).expand(-1, 3, 3).flatten(1)
    inside = ((columns >= 0) & (columns < GRID) & (rows >= 0) & (rows < GRID)).flatten()
    owner = torch.arange(len(picture), device=logits.device)[:, None].expand(-1, 9).flatten()[inside]
    column, row = columns.flatten()[inside], rows.flatten()[inside]
    weight[picture[owner], labels[owner], row, column] = 0
    weight[picture, labels, cells[:, 1], cells[:, 0]] = 1
    target[picture, labels, cells[:, 1], cells[:, 0]] = 1
    centres = binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / len(picture)
    edges = layout.boxes[picture, place][owner]
    box = _box_loss(boxes[picture[owner], :, row, column], edges)
    tint = layout.colours[picture, place][owner]
    colour = cross_entropy(colours[picture[owner], :, row, column], tint)
    total: Tensor = centres + BOX_WEIGHT * box + COLOUR_WEIGHT * colour
    return total


def _box_loss(boxes_M4: Tensor, target_M4: Tensor) -> Tensor:
    """Absolute error of the edges, and one minus the overlap."""
    low, high = (
        torch.maximum(boxes_M4[:, :2], target_M4[:, :2]),
        torch.minimum(boxes_M4[:, 2:], target_M4[:, 2:]),
    )
    shared = (high - low).clamp(min=0).prod(1)
    areas = [(one[:, 2:] - one[:, :2]).prod(1) for one in (boxes_M4, target_M4)]
    overlap = shared / (areas[0] + areas[1] - shared)
    value: Tensor = (boxes_M4 - target_M4).abs().mean() * 5 + 1 - overlap.mean()
    return value


def averaged_detector(trainer: Trainer) -> Detector:
    """The EMA weights, frozen."""
    model = Detector()
    model.load_state_dict(trainer.ema)
    return model.to(next(trainer.model.parameters()).device).eval().requires_grad_(False)

"""Draw scenes for captions: layout first, then pixels, in batches, on any device, from a seed.

Coordinates are shares of the image, from its upper left corner.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from grafting_core.testbed.emoji.atlas import MARGIN, TILE, Atlas
from grafting_core.testbed.emoji.prompts import MAX_OBJECTS, SceneTable

SIZES = ((0.34, 0.62), (0.30, 0.46), (0.28, 0.38), (0.26, 0.34))
"""Minimum and maximum of the longer side, by number of objects."""
BORDER = 0.015
GAP = 0.02
"""Minimum distance between the boxes of two objects, if one of the tries reaches it."""
TRIES = 96
STRAIGHT = 0.87
"""Minimum cosine between a relation's direction and its axis: 30 degrees at most."""
DIRECTIONS = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
SUPERSAMPLED = 128
"""Smaller images are drawn at twice the size and averaged."""


@dataclass(frozen=True)
class Layout:
    """Positions of objects, [B, N] and more; absent objects have class -1."""

    classes: Tensor
    colours: Tensor
    centres: Tensor
    halves: Tensor
    """Half the width and height of every box."""
    sizes: Tensor
    mirrored: Tensor
    backgrounds: Tensor
    """Colours of the upper and the lower edge."""
    leading: tuple[int, ...]
    """Number of leading scenes that have an object, by object number."""

    @property
    def boxes(self) -> Tensor:
        """Boxes as left, top, right, bottom."""
        return torch.cat([self.centres - self.halves, self.centres + self.halves], -1)

    @property
    def present(self) -> Tensor:
        return self.classes >= 0


def arrange(table: SceneTable, rows_B: Tensor, atlas: Atlas, generator: torch.Generator) -> Layout:
    """A layout for every caption row: the best of TRIES random ones."""
    device = atlas.tiles.device
    held = table.counts[rows_B][:, None] > torch.arange(MAX_OBJECTS)
    leading = (held * torch.arange(1, len(rows_B) + 1)[:, None]).amax(0).tolist()
    classes, colours, counts, relations = (
        values[rows_B].to(device, non_blocking=True)
        for values in (table.classes, table.colours, table.counts, table.relations)
    )
    batch = len(rows_B)
    draw = _Draw(generator, device)
    low, high = torch.tensor(SIZES, device=device)[counts - 1].unbind(-1)
    sizes = low[:, None] + (high - low)[:, None] * draw(batch, MAX_OBJECTS)
    halves = atlas.extents[classes.clamp(min=0)] * sizes[..., None] / 2
    centres = _place(draw, halves, classes >= 0, relations)
    mirrored = draw(batch, MAX_OBJECTS) < 0.5
    return Layout(classes, colours, centres, halves, sizes, mirrored, _pastels(draw, batch), tuple(leading))


class _Draw:
    """Uniform numbers in [0, 1) of one generator on one device."""

    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        self.generator, self.device = generator, device

    def __call__(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)


def _place(draw: _Draw, halves_BN2: Tensor, present_BN: Tensor, relations_B: Tensor) -> Tensor:
    """Centres [B, N, 2]: inside the image, with boxes apart and a clear relation."""
    batch, objects = present_BN.shape
    low = halves_BN2 + BORDER
    tries = low[:, None] + (1 - 2 * low)[:, None] * draw(batch, TRIES, objects, 2)
    fit = _least_gap(tries, halves_BN2, present_BN).clamp(max=GAP)
    offset = tries[:, :, 1] - tries[:, :, 0]
    direction = DIRECTIONS.to(offset)[relations_B.clamp(min=0)]
    straight = (offset * direction[:, None]).sum(-1) / offset.norm(dim=-1).clamp(min=1e-6)
    fit = fit - ((straight < STRAIGHT) & (relations_B >= 0)[:, None]).float()
    best = fit.argmax(1)
    return tries[torch.arange(batch, device=best.device), best]


def _least_gap(centres_BKN2: Tensor, halves_BN2: Tensor, present_BN: Tensor) -> Tensor:
    """Smallest distance [B, K] between boxes of two objects, along the axis on which it is largest."""
    least = torch.full(centres_BKN2.shape[:2], 1.0, device=centres_BKN2.device)
    for first in range(present_BN.shape[1]):
        for second in range(first):
            distance = (centres_BKN2[:, :, first] - centres_BKN2[:, :, second]).abs()
            gap = (distance - (halves_BN2[:, first] + halves_BN2[:, second])[:, None]).amax(-1)
            both = (present_BN[:, first] & present_BN[:, second])[:, None]
            least = torch.where(both, torch.minimum(least, gap), least)
    return least


def _pastels(draw: _Draw, batch: int) -> Tensor:
    """Light colours [B, 2, 3] of the upper and lower edge, both of one hue."""
    hue = draw(batch, 1, 1) + 0.12 * draw(batch, 2, 1)
    strength = 0.06 + 0.2 * draw(batch, 1, 1)
    value = 0.86 + 0.12 * draw(batch, 2, 1)
    phases = torch.tensor([0.0, 1 / 3, 2 / 3], device=hue.device)
    wave = 0.5 + 0.5 * torch.cos(2 * torch.pi * (hue + phases))
    return value * (1 - strength * (1 - wave))


def draw_scenes(layout: Layout, atlas: Atlas, resolution: int) -> Tensor:
    """Images [B, 3, resolution, resolution] in [-1, 1]; later objects cover earlier ones."""
    canvas, _ = _draw(layout, atlas, resolution, with_masks=False)
    return canvas


def draw_masks(layout: Layout, atlas: Atlas, resolution: int) -> Tensor:
    """Visible pixels of each object: bool [B, N, resolution, resolution], disjoint."""
    _, shown = _draw(layout, atlas, resolution, with_masks=True)
    return shown > 0.5


def _draw(layout: Layout, atlas: Atlas, resolution: int, with_masks: bool) -> tuple[Tensor, Tensor]:
    factor = 2 if resolution < SUPERSAMPLED else 1
    side = resolution * factor
    source = atlas.half() if resolution < SUPERSAMPLED else atlas
    batch, objects = layout.classes.shape
    ramp = torch.linspace(0, 1, side, device=atlas.tiles.device).view(1, 1, side, 1)
    upper, lower = layout.backgrounds.unbind(1)
    canvas = torch.lerp(upper[..., None, None], lower[..., None, None], ramp).repeat(1, 1, 1, side)
    shown = torch.zeros(batch, objects if with_masks else 0, side, side, device=canvas.device)
    for index in range(objects):
        part = slice(layout.leading[index])
        colour, alpha = _object(layout, index, source, side)
        canvas[part].mul_(1 - alpha).add_(colour)
        if with_masks:
            shown[part].mul_(1 - alpha)
            shown[part, index : index + 1] = alpha
    if factor > 1:
        canvas = avg_pool2d(canvas, factor)
        shown = avg_pool2d(shown, factor) if with_masks else shown
    return canvas.clamp(0, 1) * 2 - 1, shown


def _object(layout: Layout, index: int, atlas: Atlas, side: int) -> tuple[Tensor, Tensor]:
    """Premultiplied colour [b, 3, side, side] and opacity [b, 1, side, side] in the leading scenes."""
    part = slice(layout.leading[index])
    classes, centres = layout.classes[part, index], layout.centres[part, index]
    chosen = classes.clamp(min=0)
    scale = 2 * (TILE - 2 * MARGIN) / TILE / layout.sizes[part, index]
    places = (torch.arange(side, device=chosen.device) + 0.5) / side
    across = (places - centres[:, :1]) * scale[:, None]
    across = torch.where(layout.mirrored[part, index, None], -across, across)
    down = (places - centres[:, 1:]) * scale[:, None]
    down = torch.where(classes[:, None] >= 0, down, 9.0)
    grid = torch.stack([across[:, None, :].expand(-1, side, -1), down[:, :, None].expand(-1, -1, side)], -1)
    sampled = grid_sample(atlas.tiles[chosen], grid, align_corners=False)
    tint = atlas.tints[chosen, layout.colours[part, index]]
    colour = (tint @ sampled.flatten(2)).view(-1, 3, side, side)
    return colour, sampled[:, 3:]

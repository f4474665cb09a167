"""Detector of emoji in images: class, colour, box and score of each.

Images are scaled to one size, so that all resolutions are evaluated alike. Each cell of a 16 x 16 grid can
contain the centre of one object; its score is the probability that it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, silu, softplus

from grafting_core.testbed.emoji.vocabulary import CLASSES, COLOURS, NATURAL

INPUT = 128
GRID = 16
WIDTHS = (48, 80, 96)
REPORTED = 0.05
"""Minimum score of a detection."""
SAME_OBJECT = 0.5
"""Maximum overlap of two boxes of one class; beyond it only the better is kept."""


@dataclass(frozen=True)
class Detection:
    """One detected object; its box in pixels: left, top, right, bottom."""

    name: str
    colour: str | None
    """None for an emoji in its own colours."""
    box: tuple[float, float, float, float]
    score: float


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(width, width), nn.SiLU(), *_convolution(width, width))

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        return silu(maps_BCHW + self.body(maps_BCHW))


def _convolution(width_in: int, width_out: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    layer = nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)
    return layer, nn.BatchNorm2d(width_out)


class Detector(nn.Module):
    """Three scales, the coarsest added back to the grid; one head for class, box and colour per cell."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.fine = nn.Sequential(nn.PixelUnshuffle(4), *_convolution(48, fine), nn.SiLU(), _Block(fine))
        self.middle = nn.Sequential(*_convolution(fine, middle, 2), nn.SiLU(), _Block(middle))
        self.coarse = nn.Sequential(
            *_convolution(middle, coarse, 2), nn.SiLU(), _Block(coarse), _Block(coarse)
        )
        self.lateral = nn.Conv2d(coarse, middle, 1)
        self.joined = _Block(middle)
        self.head = nn.Conv2d(middle, len(CLASSES) + 4 + len(COLOURS) + 1, 1)
        nn.init.constant_(self.head.bias[: len(CLASSES)], -6.0)  # type: ignore[index]

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Maps [B, 80, 16, 16] of images [B, 3, S, S] in [-1, 1]."""
        if pixels_BCHW.shape[-1] != INPUT:
            pixels_BCHW = interpolate(
                pixels_BCHW, (INPUT, INPUT), mode="bilinear", align_corners=False, antialias=True
            )
        middle = self.middle(self.fine(pixels_BCHW))
        coarse = self.lateral(self.coarse(middle))
        joined: Tensor = self.joined(middle + interpolate(coarse, scale_factor=2.0, mode="nearest"))
        return joined

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits [B, 40, 16, 16], boxes [B, 4, 16, 16] in shares, and colour logits, by cell."""
        output = self.head(self.features(pixels_BCHW)).float()
        classes, reach, colours = output.split([len(CLASSES), 4, len(COLOURS) + 1], 1)
        centres = (torch.arange(GRID, device=output.device) + 0.5) / GRID
        left, top, right, bottom = (softplus(reach) / 4).unbind(1)
        across, down = centres.view(1, 1, -1), centres.view(1, -1, 1)
        return classes, torch.stack([across - left, down - top, across + right, down + bottom], 1), colours

    @torch.no_grad()
    def detect(self, pixels_BCHW: Tensor) -> list[list[Detection]]:
        """Detections of each image, best first."""
        logits, boxes, colours = self(pixels_BCHW)
        peaks = logits == max_pool2d(logits, 3, 1, 1)
        scores = logits.sigmoid()
        kept = (peaks & (scores >= REPORTED)).nonzero()
        picture, label, row, column = kept.unbind(1)
        found = torch.cat(
            [
                picture[:, None],
                label[:, None],
                colours.argmax(1)[picture, row, column][:, None],
                scores[picture, label, row, column][:, None],
                boxes[picture, :, row, column] * pixels_BCHW.shape[-1],
            ],
            1,
        )
        per_picture: list[list[Detection]] = [[] for _ in pixels_BCHW]
        for values in found[found[:, 3].argsort(descending=True, stable=True)].tolist():
            _keep(per_picture[int(values[0])], _detection(values[1:]))
        return per_picture


def _detection(values: Sequence[float]) -> Detection:
    label, colour, score, *box = values
    name = None if colour == NATURAL else COLOURS[int(colour)]
    return Detection(CLASSES[int(label)], name, (box[0], box[1], box[2], box[3]), score)


def _keep(better: list[Detection], new: Detection) -> None:
    """Add a detection unless a better one has the same object."""
    if all(other.name != new.name or overlap(other.box, new.box) <= SAME_OBJECT for other in better):
        better.append(new)


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return width * height / (area - width * height)

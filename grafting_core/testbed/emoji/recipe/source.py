"""Source of training scenes: captions, layouts and images of a step, on the training device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from grafting_core.testbed.emoji.atlas import Atlas
from grafting_core.testbed.emoji.prompts import scene_table
from grafting_core.testbed.emoji.scenes import Layout, arrange, draw_scenes


@dataclass(frozen=True)
class Scenes:
    """One batch: caption rows on the CPU, the layout, the images."""

    rows: Tensor
    layout: Layout
    pictures: Tensor


@dataclass(frozen=True)
class Source:
    """Endless scenes; a step's batch depends only on the seed, the stream's name and the step."""

    atlas: Atlas
    seed: int
    stream: int = 0
    """Name that separates it from other streams of the same seed: one per phase, one for tests."""

    @property
    def device(self) -> torch.device:
        return self.atlas.tiles.device

    def generator(self, step: int, device: torch.device | str = "cpu", use: int = 0) -> torch.Generator:
        """Generator for all random numbers of one step, by use and device."""
        number = ((self.seed * 31 + self.stream) * 7 + use) * 10_000_019 + step
        return torch.Generator(device).manual_seed(number)

    def batch(self, step: int, count: int, resolution: int) -> Scenes:
        """Scenes of a step, with random captions."""
        return self.of_rows(scene_table().draw(count, self.generator(step)), step, resolution)

    @torch.no_grad()
    def of_rows(self, rows: Tensor, step: int, resolution: int) -> Scenes:
        """Scenes of given captions."""
        layout = arrange(scene_table(), rows, self.atlas, self.generator(step, self.device, use=1))
        return Scenes(rows, layout, draw_scenes(layout, self.atlas, resolution))

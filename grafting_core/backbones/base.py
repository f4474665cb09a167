"""Interface of a backbone: its sites, the operators there, and its prediction."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from grafting_core.backbones.autoencoder import Autoencoder
from grafting_core.backbones.conditions import Conditions
from grafting_core.operators.parallel import ParallelBlocks
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.site import GraftSite


class Forward(Protocol):
    """Latents [B, C, h, w], all at one timestep, with conditions of B samples -> the transformer's output."""

    def __call__(self, latents_BCHW: Tensor, timestep: float, conditions: Conditions) -> Tensor: ...


class Family(Protocol):
    """Access to the operators of one family of transformers, and its forward signature.

    A family has no state: every method receives the transformer, which may be grafted.
    """

    def blocks(self, transformer: nn.Module) -> nn.ModuleList:
        """The list of blocks, in which a pair is one entry. Raises TypeError if there is none."""

    def set_blocks(self, transformer: nn.Module, blocks: nn.ModuleList) -> None:
        """Replace the list of blocks."""

    def pair(self, first: nn.Module, second: nn.Module, merge: nn.Module) -> ParallelBlocks:
        """Two blocks in parallel, callable as one block of this family."""

    def get_operator(self, transformer: nn.Module, site: GraftSite) -> nn.Module:
        """The module at `site`, as its block calls it. Raises ValueError beyond the last block."""

    def set_operator(self, transformer: nn.Module, site: GraftSite, module: nn.Module) -> None:
        """Replace the module at `site`; it must accept the block's arguments (see `adapt`)."""

    def adapt(self, site: GraftSite, operator: nn.Module) -> nn.Module:
        """An operator [B, T, D] -> [B, T, D], wrapped for the arguments of its slot."""

    def projections(self, original: nn.Module) -> dict[str, nn.Linear]:
        """Linear layers of an original operator: q, k, v, out of attention; expand, contract of an MLP."""

    def predict(
        self, transformer: nn.Module, noisy_BCHW: Tensor, timesteps_B: Tensor, conditions: Conditions
    ) -> Tensor:
        """The transformer's output, with gradients if they are enabled."""

    def sampling_forward(self, transformer: nn.Module) -> Forward:
        """The fastest forward with the same result, up to rounding, without gradients."""

    def label_conditions(self, labels_B: Tensor) -> Conditions:
        """Conditions of samples of these classes."""

    def null_conditions(self, card: BackboneCard, count: int) -> Conditions:
        """Null conditions of `count` samples, for guidance and condition dropout."""


@dataclass(frozen=True)
class Backbone:
    """A pretrained transformer with its autoencoder. Modules are frozen and in evaluation mode."""

    card: BackboneCard
    family: Family
    transformer: nn.Module
    autoencoder: Autoencoder

    def with_transformer(self, transformer: nn.Module) -> "Backbone":
        """The same backbone with another module: a copy, a grafted network, or one wrapped for DDP."""
        return replace(self, transformer=transformer)

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def sites(self) -> Mapping[GraftSite, BlockDims]:
        """Every site, front to back, with the dims of an operator there."""
        return dict.fromkeys(self.card.sites, self.card.dims)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one sample's latents."""
        card = self.card
        height, width = (side * card.patch_size for side in card.dims.grid)
        return card.latent_channels, height, width

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of decoded images."""
        _, height, width = self.latent_shape
        return height * self.autoencoder.pixels_per_cell, width * self.autoencoder.pixels_per_cell

    def get_operator(self, site: GraftSite) -> nn.Module:
        """The module at `site`, as its block calls it. Raises ValueError beyond the last block."""
        return self.family.get_operator(self.transformer, site)

    def set_operator(self, site: GraftSite, module: nn.Module) -> None:
        """Replace the module at `site`; it must accept the block's arguments (see `Family.adapt`)."""
        self.family.set_operator(self.transformer, site, module)

    def predict(self, noisy_BCHW: Tensor, timesteps_B: Tensor, conditions: Conditions) -> Tensor:
        """The transformer's output on noisy latents [B, C, h, w] at timesteps [B]."""
        return self.family.predict(self.transformer, noisy_BCHW, timesteps_B, conditions)

    def sampling_forward(self) -> Forward:
        """The fastest forward with the same result, up to rounding, without gradients."""
        return self.family.sampling_forward(self.transformer)

    def label_conditions(self, labels_B: Tensor) -> Conditions:
        """Conditions of samples of these classes."""
        return self.family.label_conditions(labels_B)

    def null_conditions(self, count: int = 1) -> Conditions:
        """Null conditions of `count` samples, on the CPU."""
        return self.family.null_conditions(self.card, count)

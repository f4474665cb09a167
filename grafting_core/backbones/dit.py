"""Family of diffusers' class-conditional DiT: its sites and its forward signature."""

from typing import Any

import torch
from torch import Tensor, nn

from grafting_core.backbones.base import Forward
from grafting_core.backbones.conditions import Conditions
from grafting_core.backbones.fast_forward import LABELS, forward_of
from grafting_core.backbones.slots import AttentionSlot
from grafting_core.operators.attention import SoftmaxAttention
from grafting_core.operators.mlp import FeedForward
from grafting_core.operators.parallel import ParallelBlocks, flat_blocks
from grafting_core.specs.backbone import Arithmetic, BackboneCard
from grafting_core.specs.site import GraftSite


class ParallelDiTBlocks(ParallelBlocks):
    """Parallel blocks with `norm1`, from which diffusers' DiT computes the conditioning of its last layer."""

    @property
    def norm1(self) -> nn.Module:
        """Norm of the first block."""
        return self.first.get_submodule("norm1")


class DiT:
    """Transformers of the class `DiTTransformer2DModel`."""

    def blocks(self, transformer: nn.Module) -> nn.ModuleList:
        blocks = transformer.get_submodule("transformer_blocks")
        if not isinstance(blocks, nn.ModuleList):
            raise TypeError(f"{type(transformer).__name__} has no list of blocks")
        return blocks

    def set_blocks(self, transformer: nn.Module, blocks: nn.ModuleList) -> None:
        transformer.transformer_blocks = blocks

    def pair(self, first: nn.Module, second: nn.Module, merge: nn.Module) -> ParallelBlocks:
        return ParallelDiTBlocks(first, second, merge)

    def get_operator(self, transformer: nn.Module, site: GraftSite) -> nn.Module:
        return self._block(transformer, site).get_submodule(_attribute(site))

    def set_operator(self, transformer: nn.Module, site: GraftSite, module: nn.Module) -> None:
        setattr(self._block(transformer, site), _attribute(site), module)

    def adapt(self, site: GraftSite, operator: nn.Module) -> nn.Module:
        return AttentionSlot(operator) if site.slot == "attention" else operator

    def projections(self, original: nn.Module) -> dict[str, nn.Linear]:
        return projections(original)

    def predict(
        self, transformer: nn.Module, noisy_BCHW: Tensor, timesteps_B: Tensor, conditions: Conditions
    ) -> Tensor:
        output: Tensor = transformer(noisy_BCHW, timestep=timesteps_B, **conditions.arguments).sample
        return output

    def sampling_forward(self, transformer: nn.Module) -> Forward:
        return forward_of(transformer)

    def label_conditions(self, labels_B: Tensor) -> Conditions:
        return Conditions({LABELS: labels_B})

    def null_conditions(self, card: BackboneCard, count: int) -> Conditions:
        """The label after the last class is the null label."""
        return Conditions({LABELS: torch.full((count,), card.num_classes)})

    def _block(self, transformer: nn.Module, site: GraftSite) -> nn.Module:
        """Block by its number in the backbone, also inside pairs."""
        blocks: list[nn.Module] = flat_blocks(self.blocks(transformer))
        if site.block >= len(blocks):
            raise ValueError(f"{site} does not exist; blocks are 0 to {len(blocks) - 1}")
        return blocks[site.block]


def _attribute(site: GraftSite) -> str:
    return "attn1" if site.slot == "attention" else "ff"


def projections(original: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers of attention (q, k, v, out) or a feed-forward (expand, contract).

    Of diffusers, or grafted in before. Raises TypeError for another operator.
    """
    if isinstance(original, AttentionSlot):
        return projections(original.operator)
    if hasattr(original, "to_q"):
        names = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    elif isinstance(original, SoftmaxAttention):
        names = {name: name for name in ("q", "k", "v", "out")}
    elif type(original) is FeedForward:
        names = {name: name for name in ("expand", "contract")}
    elif hasattr(original, "net"):
        names = {"expand": "net.0.proj", "contract": "net.2"}
    else:
        raise TypeError(f"no other operator can start from the weights of {type(original).__name__}")
    found: dict[str, Any] = {ours: original.get_submodule(theirs) for ours, theirs in names.items()}
    return found


def set_arithmetic(transformer: Any, arithmetic: Arithmetic) -> None:
    """Let a DiT compute its timestep embedding as the original does: frequencies 10000^(-k/128).

    Its `norm_eps`, the other difference, is an argument of the class. Does nothing for diffusers' own.
    """
    if arithmetic == "original":
        for block in transformer.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
        transformer.register_to_config(arithmetic=arithmetic)


def silence_label_dropout(transformer: nn.Module) -> None:
    """Switch off dropout in every block's label embedder: each would drop labels independently."""
    for module in transformer.modules():
        if hasattr(module, "dropout_prob"):
            setattr(module, "dropout_prob", 0.0)  # noqa: B010 - diffusers does not declare it

"""A DiT of diffusers with other operators at some sites and with blocks in parallel."""

import inspect
from collections.abc import Sequence
from typing import Any

from diffusers import DiTTransformer2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from grafting_core.backbones.dit import ParallelDiTBlocks, set_arithmetic, silence_label_dropout
from grafting_core.backbones.dit_config import GRAFTED_NORM
from grafting_core.backbones.original_dit import check_guidance
from grafting_core.backbones.slots import AttentionSlot
from grafting_core.operators.table import BUILDERS
from grafting_core.specs.backbone import Arithmetic

OPERATORS: dict[str, type[nn.Module]] = {row.module.__name__: row.module for row in BUILDERS.values()}
"""Classes of operators by the name that a config gives."""


class GraftedDiT(DiTTransformer2DModel):  # type: ignore[misc]  # diffusers has no types
    """`modules` says of which class, with which arguments, the operator of each edited site is.

    `edits` describes the same operators as the lab does. `pairs` lists blocks that run in parallel with their
    successors. `arithmetic` "original" is that of the original DiT implementation. `auto_map` names this
    class, for diffusers' `AutoModel`.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        attention_bias: bool = True,
        sample_size: int = 32,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int | None = 1000,
        upcast_attention: bool = False,
        norm_type: str = GRAFTED_NORM,
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-5,
        arithmetic: Arithmetic = "diffusers",
        edits: Sequence[dict[str, Any]] = (),
        pairs: Sequence[dict[str, Any]] = (),
        modules: Sequence[dict[str, Any]] = (),
        auto_map: dict[str, str] | None = None,
    ) -> None:
        known = inspect.signature(DiTTransformer2DModel.__init__).parameters
        plain = {name: value for name, value in self.config.items() if name in known}
        super().__init__(**{**plain, "norm_type": "ada_norm_zero"})
        self.register_to_config(norm_type=norm_type)
        set_arithmetic(self, arithmetic)
        silence_label_dropout(self)
        blocks: Any = self.get_submodule("transformer_blocks")
        for row in modules:
            _place(blocks[row["block"]], row)
        self.transformer_blocks = _paired(blocks, [pair["first"] for pair in pairs])

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As `DiTTransformer2DModel`.

        Raises ValueError for guidance that would change a model with the original DiT's arithmetic.
        """
        if self.config.arithmetic == "original" and class_labels is not None:
            check_guidance(hidden_states, class_labels, self.config.num_embeds_ada_norm)
        return super().forward(hidden_states, timestep, class_labels, cross_attention_kwargs, return_dict)


def _place(block: Any, row: dict[str, Any]) -> None:
    lists = {name: tuple(value) for name, value in row["arguments"].items() if isinstance(value, list)}
    operator = OPERATORS[row["class"]](**{**row["arguments"], **lists})
    if row["slot"] == "attention":
        block.attn1 = AttentionSlot(operator)
    else:
        block.ff = operator


def _paired(blocks: Any, firsts: Sequence[int]) -> nn.ModuleList:
    entries = list[nn.Module]()
    for index, block in enumerate(blocks):
        if index in firsts:
            width = block.norm1.linear.in_features
            entries.append(ParallelDiTBlocks(block, blocks[index + 1], nn.Linear(2 * width, width)))
        elif index - 1 not in firsts:
            entries.append(block)
    return nn.ModuleList(entries)

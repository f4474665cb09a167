"""Inference kernels for operators: the same weights and sums, fewer passes over memory.

On a CPU in single precision, linear layers use oneDNN, which fuses GELU and is ten percent faster than the
BLAS that `nn.Linear` calls. Results equal those of the modules up to rounding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.attention import FeedForward as DiffusersFeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from grafting_core.backbones.slots import AttentionSlot
from grafting_core.operators.attention import (
    BandAttention,
    GridWindowAttention,
    KernelAttention,
    SoftmaxAttention,
)
from grafting_core.operators.mlp import FeedForward

FUSED_LINEAR = "_linear_pointwise"
"""oneDNN's linear layer with an activation, under the name that torch's compiler uses."""


def apply(module: nn.Module, hidden_BTD: Tensor) -> Tensor:
    """Result of `module(hidden_BTD)`, computed by the kernel for its type if there is one."""
    kernel = KERNELS.get(type(module))
    out: Tensor = module(hidden_BTD) if kernel is None else kernel(module, hidden_BTD)
    return out


def linear(layer: Any, inputs: Tensor, activation: str = "none") -> Tensor:
    """Result of an nn.Linear; `activation` "gelu" applies GELU in its tanh form."""
    if _fusible(inputs, layer.weight):
        form = "tanh" if activation == "gelu" else ""
        fused = getattr(torch.ops.mkldnn, FUSED_LINEAR)
        out: Tensor = fused(inputs, layer.weight, layer.bias, activation, [], form)
        return out
    plain: Tensor = layer(inputs)
    return gelu(plain, approximate="tanh") if activation == "gelu" else plain


def _fusible(inputs: Tensor, weight: Tensor) -> bool:
    single = inputs.dtype is torch.float32 and weight.dtype is torch.float32
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, FUSED_LINEAR)
    return inputs.device.type == "cpu" and single and known and not torch.is_grad_enabled()


def _attention(module: Any, hidden_BTD: Tensor) -> Tensor:
    if not _is_plain(module):
        unusual: Tensor = module(hidden_BTD)
        return unusual
    parts = (module.to_q, module.to_k, module.to_v)
    return _attended(parts, module.to_out[0], module.heads, scaled_dot_product_attention, hidden_BTD)


def _is_plain(module: Any) -> bool:
    """Whether it is softmax attention with nothing before, between or after its four projections."""
    extras = ("group_norm", "spatial_norm", "norm_q", "norm_k", "norm_cross")
    ordinary = not (module.residual_connection or module.fused_projections or module.is_causal)
    scaled = module.rescale_output_factor == 1 and module.scale == (module.inner_dim // module.heads) ** -0.5
    plain: bool = all(getattr(module, name, None) is None for name in extras) and ordinary and scaled
    return plain and type(module.processor) is AttnProcessor2_0


def _softmax_attention(module: Any, hidden_BTD: Tensor) -> Tensor:
    return _attended((module.q, module.k, module.v), module.out, module.num_heads, module.mix, hidden_BTD)


def _attended(
    parts: tuple[Any, Any, Any], out: Any, num_heads: int, mix: Callable[..., Tensor], hidden_BTD: Tensor
) -> Tensor:
    heads = (linear(part, hidden_BTD).unflatten(2, (num_heads, -1)).transpose(1, 2) for part in parts)
    return linear(out, mix(*heads).transpose(1, 2).flatten(2))


def _slot(module: Any, hidden_BTD: Tensor) -> Tensor:
    return apply(module.operator, hidden_BTD)


def _feed_forward(module: Any, hidden_BTD: Tensor) -> Tensor:
    return linear(module.contract, linear(module.expand, hidden_BTD, "gelu"))


def _diffusers_feed_forward(module: Any, hidden_BTD: Tensor) -> Tensor:
    first = module.net[0]
    if getattr(first, "approximate", None) != "tanh" or len(module.net) != 3:
        unusual: Tensor = module(hidden_BTD)
        return unusual
    return linear(module.net[2], linear(first.proj, hidden_BTD, "gelu"))


KERNELS: Mapping[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.Linear: linear,
    Attention: _attention,
    AttentionSlot: _slot,
    SoftmaxAttention: _softmax_attention,
    BandAttention: _softmax_attention,
    GridWindowAttention: _softmax_attention,
    KernelAttention: _softmax_attention,
    FeedForward: _feed_forward,
    DiffusersFeedForward: _diffusers_feed_forward,
}
"""Module type -> kernel; the type must be exact, since a subclass may compute something else."""

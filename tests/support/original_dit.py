"""The original DiT and the operators of released grafts by their formulas, and files of random weights.

An independent reference: everything works on a state dict in the original layout and uses nothing of the
package. Sizes are those of DiT-XL/2 unless given.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, gelu, layer_norm, linear, pad, silu, softplus

State = dict[str, Tensor]
WIDTH, HEADS, SIDE, PATCH, CLASSES = 1152, 16, 16, 2, 1000
WINDOW, STATES = 4, 64


def pos_embed(width: int = WIDTH, side: int = SIDE) -> Tensor:
    """Sines and cosines of columns, then of rows, [1, side * side, width]."""
    omega = 1 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    parts = []
    for places in (columns, rows):
        angles = places.reshape(-1)[:, None] * omega
        parts += [np.sin(angles), np.cos(angles)]
    return torch.from_numpy(np.concatenate(parts, axis=1)).float()[None]


def timestep_features(timesteps_B: Tensor) -> Tensor:
    """Cosines, then sines, at the frequencies 10000^(-k/128)."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    angles = timesteps_B[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def forward(state: State, latents: Tensor, timesteps_B: Tensor, labels_B: Tensor) -> Tensor:
    """Output [B, 2C, h, w] of a transformer, grafted or not, whose blocks' keys tell their operators."""
    hidden, condition = _embedded(state, latents, timesteps_B, labels_B)
    for block in range(1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))):
        hidden = _block(_inside(state, f"blocks.{block}."), hidden, condition)
    shift, scale = _modulation(state, "final_layer.adaLN_modulation.1", condition, 2)
    hidden = linear(_norm(hidden) * (1 + scale) + shift, *_pair(state, "final_layer.linear"))
    side = int(hidden.shape[1] ** 0.5)
    grid = hidden.reshape(len(hidden), side, side, PATCH, PATCH, -1)
    return torch.einsum("nhwpqc->nchpwq", grid).reshape(len(hidden), -1, side * PATCH, side * PATCH)


def first_attention(
    state: State, latents: Tensor, timesteps_B: Tensor, labels_B: Tensor, heads: int
) -> Tensor:
    """What the first block's attention gives, before its gate."""
    hidden, condition = _embedded(state, latents, timesteps_B, labels_B)
    block = _inside(state, "blocks.0.")
    parts = _modulation(block, "adaLN_modulation.1", condition, 6)
    attention = _inside(block, "attn.")
    modulated = _norm(hidden) * (1 + parts[1]) + parts[0]
    return _attention(modulated, _pair(attention, "qkv"), _pair(attention, "proj"), None, heads)


def _embedded(state: State, latents: Tensor, timesteps_B: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, T, D] and the condition [B, D]."""
    hidden = conv2d(latents, *_pair(state, "x_embedder.proj"), stride=PATCH)
    hidden = hidden.flatten(2).transpose(1, 2) + state["pos_embed"]
    features = linear(timestep_features(timesteps_B), *_pair(state, "t_embedder.mlp.0"))
    condition = linear(silu(features), *_pair(state, "t_embedder.mlp.2"))
    return hidden, condition + state["y_embedder.embedding_table.weight"][labels_B]


def _block(state: State, hidden: Tensor, condition: Tensor) -> Tensor:
    parts = _modulation(state, "adaLN_modulation.1", condition, 6)
    attention, mlp = _inside(state, "attn."), _inside(state, "mlp.")
    mixed = mixer(attention)(attention, _norm(hidden) * (1 + parts[1]) + parts[0])
    hidden = hidden + parts[2] * mixed
    return hidden + parts[5] * channels(mlp)(mlp, _norm(hidden) * (1 + parts[4]) + parts[3])


def _modulation(state: State, name: str, condition: Tensor, parts: int) -> tuple[Tensor, ...]:
    return linear(silu(condition), *_pair(state, name))[:, None].chunk(parts, dim=2)


def _norm(hidden: Tensor) -> Tensor:
    return layer_norm(hidden, hidden.shape[-1:], eps=1e-6)


def _pair(state: State, name: str) -> tuple[Tensor, Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def _inside(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


Operator = Callable[[State, Tensor], Tensor]


def mixer(state: State) -> Operator:
    """The operator in the place of attention, by its keys."""
    for name, operator in (("qkv", mha), ("Wqkv", swa), ("conv1d", mamba2)):
        if f"{name}.weight" in state:
            return operator
    return hyena


def channels(state: State) -> Operator:
    return mlp_hyena_x if "short_filter.weight" in state else mlp


def mha(state: State, u: Tensor) -> Tensor:
    return _attention(u, _pair(state, "qkv"), _pair(state, "proj"), None)


def swa(state: State, u: Tensor) -> Tensor:
    places = torch.arange(u.shape[1])
    far = (places[:, None] - places).abs() > WINDOW
    return _attention(u, _pair(state, "Wqkv"), _pair(state, "out_proj"), far)


def _attention(
    u: Tensor,
    qkv: tuple[Tensor, Tensor],
    out: tuple[Tensor, Tensor],
    far: Tensor | None,
    heads: int = HEADS,
) -> Tensor:
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in linear(u, *qkv).chunk(3, dim=2))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    if far is not None:
        scores = scores.masked_fill(far, -math.inf)
    return linear((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2), *out)


def _causal(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Filter per channel of [B, T, C] over the tokens; the last tap is the token's own."""
    padded = pad(u.transpose(1, 2), (weight.shape[2] - 1, 0))
    return conv1d(padded, weight, bias, groups=len(weight)).transpose(1, 2)


def hyena(state: State, u: Tensor) -> Tensor:
    mixed = linear(u, *_pair(state, "in_proj"))
    if "short_filter.weight" in state:
        mixed = _causal(mixed, *_pair(state, "short_filter"))
    q, k, v = mixed.chunk(3, dim=2)
    inner = k * v
    if "inner_filter.weight" in state:
        inner = _causal(inner, *_pair(state, "inner_filter"))
    return linear(q * inner, *_pair(state, "out_proj"))


def mamba2(state: State, u: Tensor) -> Tensor:
    """Token by token: h = exp(step A) h + step b x, y = c h + D x."""
    inner, heads = len(state["norm.weight"]), len(state["A_log"])
    z, mixed, steps = linear(u, state["in_proj.weight"]).split([inner, inner + 2 * STATES, heads], dim=2)
    x, b, c = silu(_causal(mixed, *_pair(state, "conv1d"))).split([inner, STATES, STATES], dim=2)
    x, steps = x.unflatten(2, (heads, -1)), softplus(steps + state["dt_bias"])
    memory, outputs = torch.zeros(len(u), heads, x.shape[3], STATES), []
    for t in range(u.shape[1]):
        kept = torch.exp(-steps[:, t] * state["A_log"].exp())[:, :, None, None]
        memory = kept * memory + (steps[:, t, :, None] * x[:, t])[..., None] * b[:, t, None, None]
        outputs.append((memory * c[:, t, None, None]).sum(dim=3) + state["D"][:, None] * x[:, t])
    gated = torch.stack(outputs, dim=1).flatten(2) * silu(z)
    normed = gated * torch.rsqrt(gated.pow(2).mean(dim=2, keepdim=True) + 1e-5) * state["norm.weight"]
    return linear(normed, state["out_proj.weight"])


def mlp(state: State, u: Tensor) -> Tensor:
    return linear(gelu(linear(u, *_pair(state, "fc1")), approximate="tanh"), *_pair(state, "fc2"))


def mlp_hyena_x(state: State, u: Tensor) -> Tensor:
    """A filter for each token, along the channels."""
    mixed = pad(linear(u, *_pair(state, "in_proj")), (3, 0))
    weight, bias = _pair(state, "short_filter")
    q, k, v = conv1d(mixed, weight, bias, groups=len(weight)).chunk(3, dim=2)
    return linear(q * k * v, *_pair(state, "out_proj"))


Shapes = Mapping[str, tuple[int, ...]]


def _biased(**rows: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Weight and bias of linear layers: name -> (rows, columns)."""
    both: dict[str, tuple[int, ...]] = {}
    for name, (out, into) in rows.items():
        both |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    return both


def _filter(name: str, count: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (count, 1, 4), f"{name}.bias": (count,)}


def attention_shapes(published: str, width: int = WIDTH) -> Shapes:
    """Tensors of an operator in the place of attention, by its name in a released graft's name."""
    projected = _biased(in_proj=(3 * width, width), out_proj=(width, width))
    short, inner = _filter("short_filter", 3 * width), _filter("inner_filter", width)
    heads = 2 * width // 16
    found: dict[str, Shapes] = {
        "mha": _biased(qkv=(3 * width, width), proj=(width, width)),
        "swa": _biased(Wqkv=(3 * width, width), out_proj=(width, width)),
        "hyena_se": projected | short | inner,
        "hyena_x": projected | short,
        "hyena_y": projected | inner,
        "mamba_2": {
            "in_proj.weight": (4 * width + 2 * STATES + heads, width),
            **_filter("conv1d", 2 * width + 2 * STATES),
            "dt_bias": (heads,),
            "A_log": (heads,),
            "D": (heads,),
            "norm.weight": (2 * width,),
            "out_proj.weight": (width, 2 * width),
        },
    }
    return found[published]


def mlp_shapes(published: str, width: int = WIDTH) -> Shapes:
    """Likewise of an operator in the place of an MLP."""
    if published == "hyena_x":
        projected = _biased(in_proj=(6 * width, width), out_proj=(width, 2 * width))
        return projected | _filter("short_filter", SIDE**2)
    ratio = int(published.removeprefix("mlp_r_"))
    return _biased(fc1=(ratio * width, width), fc2=(width, ratio * width))


def random_state(
    depth: int,
    grafts: Mapping[tuple[int, str], str] | None = None,
    *,
    width: int = WIDTH,
    seed: int = 0,
    scale: float = 0.03,
) -> State:
    """Weights in the original layout, all non-zero: gates and the last layer too.

    `grafts` has the operator at (block, "attn" or "mlp") by its published name.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (width, 4, PATCH, PATCH),
        "x_embedder.proj.bias": (width,),
        **_biased(**{"t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width)}),
        "y_embedder.embedding_table.weight": (CLASSES + 1, width),
        **_biased(**{"final_layer.linear": (32, width)}),
        **_biased(**{"final_layer.adaLN_modulation.1": (2 * width, width)}),
    }
    for block in range(depth):
        attention = attention_shapes((grafts or {}).get((block, "attn"), "mha"), width)
        mlp_ = mlp_shapes((grafts or {}).get((block, "mlp"), "mlp_r_4"), width)
        shapes |= _biased(**{f"blocks.{block}.adaLN_modulation.1": (6 * width, width)})
        shapes |= {f"blocks.{block}.attn.{name}": shape for name, shape in attention.items()}
        shapes |= {f"blocks.{block}.mlp.{name}": shape for name, shape in mlp_.items()}
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}
    return {"pos_embed": pos_embed(width), **drawn}


def relative_errors(found: Tensor, expected: Tensor) -> list[float]:
    """Relative L2 error by sample."""
    difference = (found - expected).flatten(1).norm(dim=1)
    found_errors: list[float] = (difference / expected.flatten(1).norm(dim=1)).tolist()
    return found_errors

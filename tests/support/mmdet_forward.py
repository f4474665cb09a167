"""Forward of mmdet 2's Mask2Former from its own tensors, written with torch's functions alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

State = Mapping[str, Tensor]
HEADS, LEVELS, POINTS, WINDOW, LAYERS = 8, 3, 4, 7, 9


def mmdet_forward(
    state: State, pixels_BCHW: Tensor, depths: Sequence[int], heads: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Class logits [B, Q, 81] and mask logits [B, Q, H/4, W/4] of the last decoder layer."""
    maps = swin(state, pixels_BCHW, depths, heads)
    features, levels = pixel_decoder(state, maps)
    return decode(state, features, levels)


def linear(state: State, name: str, hidden: Tensor) -> Tensor:
    return F.linear(hidden, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state: State, name: str, hidden: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.layer_norm(hidden, weight.shape, weight, state[f"{name}.bias"])


def conv_norm(state: State, name: str, maps: Tensor, padding: int = 0) -> Tensor:
    made = F.conv2d(maps, state[f"{name}.conv.weight"], state.get(f"{name}.conv.bias"), padding=padding)
    return F.group_norm(made, 32, state[f"{name}.gn.weight"], state[f"{name}.gn.bias"])


def swin(state: State, pixels: Tensor, depths: Sequence[int], heads: Sequence[int]) -> list[Tensor]:
    patch = "backbone.patch_embed"
    weight, bias = state[f"{patch}.projection.weight"], state[f"{patch}.projection.bias"]
    grid = norm(state, f"{patch}.norm", F.conv2d(pixels, weight, bias, stride=4).permute(0, 2, 3, 1))
    maps = []
    for stage, depth in enumerate(depths):
        for number in range(depth):
            block = f"backbone.stages.{stage}.blocks.{number}"
            shift = WINDOW // 2 if number % 2 else 0
            grid = grid + shifted_windows(
                state, f"{block}.attn.w_msa", norm(state, f"{block}.norm1", grid), heads[stage], shift
            )
            inner = F.gelu(linear(state, f"{block}.ffn.layers.0.0", norm(state, f"{block}.norm2", grid)))
            grid = grid + linear(state, f"{block}.ffn.layers.1", inner)
        maps.append(norm(state, f"backbone.norm{stage}", grid).permute(0, 3, 1, 2))
        if stage < 3:
            grid = merged(state, f"backbone.stages.{stage}.downsample", grid)
    return maps


def merged(state: State, name: str, grid: Tensor) -> Tensor:
    batch, height, width, _ = grid.shape
    squares = F.unfold(grid.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    return linear(state, f"{name}.reduction", norm(state, f"{name}.norm", squares)).view(
        batch, height // 2, width // 2, -1
    )


def shifted_windows(state: State, name: str, grid: Tensor, heads: int, shift: int) -> Tensor:
    """Attention within windows, one window at a time; windows that wrap around are masked by region."""
    batch, height, width, dim = grid.shape
    padded = F.pad(grid, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
    tall, wide = padded.shape[1:3]
    rolled = torch.roll(padded, (-shift, -shift), (1, 2))
    region = torch.zeros(tall, wide)
    if shift:
        for axis, length in ((0, tall), (1, wide)):
            place = torch.arange(length)
            kind = (place >= length - WINDOW).long() + (place >= length - shift).long()
            region += 3 * kind[:, None] if axis == 0 else kind[None, :]
    result = torch.empty_like(rolled)
    for top in range(0, tall, WINDOW):
        for left in range(0, wide, WINDOW):
            rows, columns = slice(top, top + WINDOW), slice(left, left + WINDOW)
            inside = rolled[:, rows, columns].reshape(batch, WINDOW**2, dim)
            kinds = region[rows, columns].flatten()
            mask = (kinds[:, None] != kinds[None, :]).float() * -100
            made = window_attention(state, name, inside, heads, mask)
            result[:, rows, columns] = made.view(batch, WINDOW, WINDOW, dim)
    return torch.roll(result, (shift, shift), (1, 2))[:, :height, :width]


def window_attention(state: State, name: str, tokens: Tensor, heads: int, mask: Tensor) -> Tensor:
    batch, count, dim = tokens.shape
    query, key, value = (
        part.view(batch, count, heads, dim // heads).transpose(1, 2)
        for part in linear(state, f"{name}.qkv", tokens).chunk(3, -1)
    )
    rows, columns = torch.arange(count) // WINDOW, torch.arange(count) % WINDOW
    down = rows[:, None] - rows[None, :] + WINDOW - 1
    across = columns[:, None] - columns[None, :] + WINDOW - 1
    bias = state[f"{name}.relative_position_bias_table"][down * (2 * WINDOW - 1) + across].permute(2, 0, 1)
    weights = (query @ key.transpose(-1, -2) * (dim // heads) ** -0.5 + bias + mask).softmax(-1)
    return linear(state, f"{name}.proj", (weights @ value).transpose(1, 2).reshape(batch, count, dim))


def sine(height: int, width: int) -> Tensor:
    """Positions [256, H, W]: first those of the rows, then of the columns."""
    parts = []
    for axis, length in ((0, height), (1, width)):
        places = torch.arange(1, length + 1) / (length + 1e-6) * 2 * torch.pi
        angles = places[:, None] / 10_000 ** (2 * (torch.arange(128) // 2) / 128)
        values = torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], -1).flatten(1).T
        shape = (128, height, width)
        parts.append((values[:, :, None] if axis == 0 else values[:, None, :]).expand(shape))
    return torch.cat(parts)


def tokens_of(maps: Tensor) -> Tensor:
    return maps.flatten(-2).transpose(-1, -2)


def pixel_decoder(state: State, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Mask features at a quarter of the image's size, and three levels from the smallest on."""
    head = "panoptic_head.pixel_decoder"
    levels = [conv_norm(state, f"{head}.input_convs.{i}", maps[3 - i]) for i in range(LEVELS)]
    sizes = [(level.shape[2], level.shape[3]) for level in levels]
    hidden = torch.cat([tokens_of(level) for level in levels], 1)
    encoding = state[f"{head}.level_encoding.weight"]
    places = torch.cat([tokens_of(sine(*size)) + encoding[i] for i, size in enumerate(sizes)])
    points = torch.cat([centres(*size) for size in sizes])
    for number in range(6):
        layer = f"{head}.encoder.layers.{number}"
        attended = deformable(state, f"{layer}.attentions.0", hidden, places, points, sizes)
        hidden = norm(state, f"{layer}.norms.0", hidden + attended)
        hidden = norm(state, f"{layer}.norms.1", hidden + feed_forward(state, layer, hidden))
    parts = hidden.split([height * width for height, width in sizes], 1)
    levels = [part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
    lateral = conv_norm(state, f"{head}.lateral_convs.0", maps[0])
    larger = F.interpolate(levels[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
    top = conv_norm(state, f"{head}.output_convs.0", lateral + larger, padding=1).relu()
    mask = f"{head}.mask_feature"
    return F.conv2d(top, state[f"{mask}.weight"], state[f"{mask}.bias"]), levels


def feed_forward(state: State, layer: str, hidden: Tensor) -> Tensor:
    inner = linear(state, f"{layer}.ffns.0.layers.0.0", hidden).relu()
    return linear(state, f"{layer}.ffns.0.layers.1", inner)


def centres(height: int, width: int) -> Tensor:
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], -1).view(-1, 2)


def deformable(
    state: State, name: str, hidden: Tensor, places: Tensor, points_T2: Tensor, sizes: list[tuple[int, int]]
) -> Tensor:
    batch, count, dim = hidden.shape
    value = linear(state, f"{name}.value_proj", hidden).view(batch, count, HEADS, dim // HEADS)
    query = hidden + places
    offsets = linear(state, f"{name}.sampling_offsets", query).view(batch, count, HEADS, LEVELS, POINTS, 2)
    weights = linear(state, f"{name}.attention_weights", query).view(batch, count, HEADS, -1).softmax(-1)
    weights = weights.view(batch, count, HEADS, LEVELS, POINTS)
    total, start = torch.zeros_like(value), 0
    for level, (height, width) in enumerate(sizes):
        part = value[:, start : start + height * width].permute(0, 2, 3, 1)
        grid = part.reshape(batch * HEADS, dim // HEADS, height, width)
        where = points_T2[:, None, None] + offsets[:, :, :, level] / torch.tensor([width, height])
        where = (2 * where - 1).permute(0, 2, 1, 3, 4).flatten(0, 1)
        seen = F.grid_sample(grid, where, mode="bilinear", padding_mode="zeros", align_corners=False)
        seen = seen.view(batch, HEADS, dim // HEADS, count, POINTS).permute(0, 3, 1, 2, 4)
        total = total + (seen * weights[:, :, :, level, None]).sum(-1)
        start += height * width
    return linear(state, f"{name}.output_proj", total.flatten(2))


def attention(
    state: State, name: str, query: Tensor, key: Tensor, value: Tensor, hidden_keys: Tensor | None = None
) -> Tensor:
    """Attention of several heads; `hidden_keys` [B, T, S] marks keys that a query must not see."""
    projected = [
        F.linear(given, weight, bias).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for given, weight, bias in zip(
            (query, key, value),
            state[f"{name}.in_proj_weight"].chunk(3),
            state[f"{name}.in_proj_bias"].chunk(3),
            strict=True,
        )
    ]
    scores = projected[0] @ projected[1].transpose(-1, -2) / projected[0].shape[-1] ** 0.5
    if hidden_keys is not None:
        scores = scores.masked_fill(hidden_keys[:, None], float("-inf"))
    return linear(state, f"{name}.out_proj", (scores.softmax(-1) @ projected[2]).transpose(1, 2).flatten(2))


def decode(state: State, features: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    head, batch = "panoptic_head", features.shape[0]
    hidden = state[f"{head}.query_feat.weight"].expand(batch, -1, -1)
    places = state[f"{head}.query_embed.weight"]
    classes, masks = predict(state, hidden, features)
    for number in range(LAYERS):
        level = levels[number % LEVELS]
        small = F.interpolate(masks, size=level.shape[-2:], mode="bilinear", align_corners=False)
        outside = small.flatten(2).sigmoid() < 0.5
        outside = outside & ~outside.all(-1, keepdim=True)
        memory = tokens_of(level) + state[f"{head}.level_embed.weight"][number % LEVELS]
        layer = f"{head}.transformer_decoder.layers.{number}"
        keys = memory + tokens_of(sine(level.shape[2], level.shape[3]))
        crossed = attention(state, f"{layer}.attentions.0.attn", hidden + places, keys, memory, outside)
        hidden = norm(state, f"{layer}.norms.0", hidden + crossed)
        own = attention(state, f"{layer}.attentions.1.attn", hidden + places, hidden + places, hidden)
        hidden = norm(state, f"{layer}.norms.1", hidden + own)
        hidden = norm(state, f"{layer}.norms.2", hidden + feed_forward(state, layer, hidden))
        classes, masks = predict(state, hidden, features)
    return classes, masks


def predict(state: State, hidden: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    head = "panoptic_head"
    normed = norm(state, f"{head}.transformer_decoder.post_norm", hidden)
    inner = linear(state, f"{head}.mask_embed.0", normed).relu()
    embedded = linear(state, f"{head}.mask_embed.4", linear(state, f"{head}.mask_embed.2", inner).relu())
    return linear(state, f"{head}.cls_embed", normed), torch.einsum("bqc,bchw->bqhw", embedded, features)

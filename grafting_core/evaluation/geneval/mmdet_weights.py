"""Convert the official detector's checkpoint: names of mmdet 2 to those of transformers' Mask2Former."""

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SWIN, PIXELS = "model.pixel_level_module.encoder", "model.pixel_level_module.decoder"
HEAD = "model.transformer_module"
BLOCK = r"backbone\.stages\.(\d+)\.blocks\.(\d+)"
NEW_BLOCK = rf"{SWIN}.swin.encoder.layers.\1.blocks.\2"
ENCODER = r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)"
DECODER = r"panoptic_head\.transformer_decoder\.layers\.(\d+)"

RENAMED: tuple[tuple[str, str], ...] = (
    (r"backbone\.patch_embed\.projection", f"{SWIN}.swin.embeddings.patch_embeddings.projection"),
    (r"backbone\.patch_embed\.norm", f"{SWIN}.swin.embeddings.norm"),
    (rf"{BLOCK}\.norm1", rf"{NEW_BLOCK}.layernorm_before"),
    (rf"{BLOCK}\.norm2", rf"{NEW_BLOCK}.layernorm_after"),
    (
        rf"{BLOCK}\.attn\.w_msa\.relative_position_bias_table",
        rf"{NEW_BLOCK}.attention.relative_position_bias.relative_position_bias_table",
    ),
    (rf"{BLOCK}\.attn\.w_msa\.qkv", rf"{NEW_BLOCK}.attention.{{qkv}}_proj"),
    (rf"{BLOCK}\.attn\.w_msa\.proj", rf"{NEW_BLOCK}.attention.o_proj"),
    (rf"{BLOCK}\.ffn\.layers\.0\.0", rf"{NEW_BLOCK}.mlp.fc1"),
    (rf"{BLOCK}\.ffn\.layers\.1", rf"{NEW_BLOCK}.mlp.fc2"),
    (r"backbone\.stages\.(\d+)\.downsample", rf"{SWIN}.swin.encoder.layers.\1.downsample"),
    *((rf"backbone\.norm{place}", f"{SWIN}.hidden_states_norms.stage{place + 1}") for place in range(4)),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.conv", rf"{PIXELS}.input_projections.\1.0"),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.gn", rf"{PIXELS}.input_projections.\1.1"),
    (rf"{ENCODER}\.attentions\.0", rf"{PIXELS}.encoder.layers.\1.self_attn"),
    (rf"{ENCODER}\.norms\.0", rf"{PIXELS}.encoder.layers.\1.self_attn_layer_norm"),
    (rf"{ENCODER}\.norms\.1", rf"{PIXELS}.encoder.layers.\1.final_layer_norm"),
    (rf"{ENCODER}\.ffns\.0\.layers\.0\.0", rf"{PIXELS}.encoder.layers.\1.fc1"),
    (rf"{ENCODER}\.ffns\.0\.layers\.1", rf"{PIXELS}.encoder.layers.\1.fc2"),
    (r"panoptic_head\.pixel_decoder\.level_encoding\.weight", f"{PIXELS}.level_embed"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.conv", f"{PIXELS}.adapter_1.0"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.gn", f"{PIXELS}.adapter_1.1"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.conv", f"{PIXELS}.layer_1.0"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.gn", f"{PIXELS}.layer_1.1"),
    (r"panoptic_head\.pixel_decoder\.mask_feature", f"{PIXELS}.mask_projection"),
    (rf"{DECODER}\.attentions\.0\.attn", rf"{HEAD}.decoder.layers.\1.cross_attn"),
    (rf"{DECODER}\.attentions\.1\.attn\.in_proj_", rf"{HEAD}.decoder.layers.\1.self_attn.{{qkv}}_proj."),
    (rf"{DECODER}\.attentions\.1\.attn", rf"{HEAD}.decoder.layers.\1.self_attn"),
    (rf"{DECODER}\.norms\.0", rf"{HEAD}.decoder.layers.\1.cross_attn_layer_norm"),
    (rf"{DECODER}\.norms\.1", rf"{HEAD}.decoder.layers.\1.self_attn_layer_norm"),
    (rf"{DECODER}\.norms\.2", rf"{HEAD}.decoder.layers.\1.final_layer_norm"),
    (rf"{DECODER}\.ffns\.0\.layers\.0\.0", rf"{HEAD}.decoder.layers.\1.fc1"),
    (rf"{DECODER}\.ffns\.0\.layers\.1", rf"{HEAD}.decoder.layers.\1.fc2"),
    (r"panoptic_head\.transformer_decoder\.post_norm", f"{HEAD}.decoder.layernorm"),
    (r"panoptic_head\.query_embed", f"{HEAD}.queries_embedder"),
    (r"panoptic_head\.query_feat", f"{HEAD}.queries_features"),
    (r"panoptic_head\.level_embed", f"{HEAD}.level_embed"),
    (r"panoptic_head\.cls_embed", "class_predictor"),
    *(
        (rf"panoptic_head\.mask_embed\.{2 * place}", f"{HEAD}.decoder.mask_predictor.mask_embedder.{place}.0")
        for place in range(3)
    ),
)
"""Beginning of a name -> its new beginning; `{qkv}` stands for three tensors that were one."""
COMPUTED = re.compile(rf"{BLOCK}\.attn\.w_msa\.relative_position_index")
"""Buffers of the checkpoint that follow from the sizes."""


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint of mmdet. Raises ValueError for another file; nothing in it is executed."""
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{file} is no checkpoint of tensors: {' '.join(str(error).split())[:200]}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{file} has no state_dict of tensors")
    return dict(state)


def converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of transformers. Raises ValueError with the names that have no place there."""
    found, unknown = dict[str, Tensor](), list[str]()
    for name, tensor in state.items():
        if COMPUTED.fullmatch(name):
            continue
        new = renamed(name)
        if new is None:
            unknown.append(name)
        else:
            found.update(_tensors(new, tensor))
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(state)} tensors are not those of mmdet's Mask2Former with a Swin "
            f"backbone, such as {unknown[0]}"
        )
    return found


def renamed(name: str) -> str | None:
    """New name of a tensor; None if it has no place."""
    for old, new in RENAMED:
        match = re.match(old + r"(?=\.|_|$|weight|bias)", name)
        if match:
            return match.expand(new) + name[match.end() :]
    return None


def _tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if "{qkv}" in name:
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            yield name.replace("{qkv}", letter), part.contiguous()
    elif ".downsample." in name:
        yield name, _merging_order(tensor)
    else:
        yield name, tensor


def _merging_order(tensor: Tensor) -> Tensor:
    """Reorder the inputs of patch merging, in the last dimension.

    mmdet orders them by channel and then by the pixel in its square, row by row; transformers by the pixel,
    column by column, and then by channel.
    """
    squares: Tensor = tensor.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]]
    return squares.transpose(-1, -2).flatten(-2).contiguous()

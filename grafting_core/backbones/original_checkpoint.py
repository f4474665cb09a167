"""The original DiT's layout of weights: its names, the sizes that its shapes tell, and where they go here.

A transformer of that layout keeps its arithmetic (`BackboneCard.arithmetic`).
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from grafting_core.backbones.checkpoint_file import State
from grafting_core.backbones.diffusers_folder import empty_transformer
from grafting_core.backbones.dit_config import MOST_TOKENS_A_SIDE, ORIGINAL_EPS, TIME_FEATURES, DiTConfig
from grafting_core.backbones.weight_files import Shape, named

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Width -> attention heads of the code's sizes S, B, L and XL; no tensor tells them."""
BLOCK_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")
PATCH_EMBEDDING = "x_embedder.proj"
LABELS = "y_embedder.embedding_table.weight"
POSITIONS = "pos_embed"
LAST = "final_layer.linear"
OUTSIDE = {
    PATCH_EMBEDDING: "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    LAST: "proj_out_2",
}
EMBEDDERS = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}
"""Embedders of the whole network, of which diffusers gives one to each block."""
MODULATION = "adaLN_modulation.1"
POSITION_ERROR = 1e-6
"""Two computations of the same sines and cosines differ by less."""


def split_blocks(path: Path, state: Mapping[str, Tensor]) -> tuple[State, list[State]]:
    """Tensors outside the blocks, and those of every block by their names inside it.

    Raises ValueError where a block has none.
    """
    outside, blocks = State(), dict[int, State]()
    for name, tensor in state.items():
        match name.split(".", 2):
            case ["blocks", number, inside] if BLOCK_NUMBER.fullmatch(number):
                blocks.setdefault(int(number), {})[inside] = tensor
            case _:
                outside[name] = tensor
    missing = next((index for index in range(len(blocks)) if index not in blocks), None)
    if missing is not None or not blocks:
        raise ValueError(f"{path} lacks every tensor of blocks.{missing or 0}")
    return outside, [blocks[index] for index in range(len(blocks))]


def config_of(path: Path, outside: Mapping[str, Tensor], depth: int) -> DiTConfig:
    """The sizes of a transformer from its shapes. Raises ValueError where they do not tell them."""
    needed = (f"{PATCH_EMBEDDING}.weight", LABELS, POSITIONS, f"{LAST}.weight")
    missing = [name for name in needed if name not in outside]
    if missing:
        raise ValueError(f"{path} lacks {named(missing)}")
    patches, labels, positions, last = (tuple(outside[name].shape) for name in needed)
    if (len(patches), len(labels), len(positions), len(last)) != (4, 2, 3, 2):
        raise ValueError(f"{path}: {', '.join(needed)} have the shapes of something else")
    width, channels, patch, _ = patches
    if 0 in (*patches, *positions, *last) or labels[0] < 2:
        raise ValueError(f"{path}: {', '.join(needed)} have no elements, or there is no class")
    if width not in HEADS:
        known = ", ".join(map(str, HEADS))
        raise ValueError(f"{path}: its width is {width}; the heads of the widths {known} alone are known")
    side = round(positions[1] ** 0.5)
    if side > MOST_TOKENS_A_SIDE:
        raise ValueError(f"{path}: a side of {side:,} tokens; at most {MOST_TOKENS_A_SIDE} are supported")
    out, rest = divmod(last[0], patch**2)
    if rest or out not in (channels, 2 * channels):
        raise ValueError(
            f"{path}: {LAST}.weight has {last[0]} rows; patches of {patch} x {patch} with {channels} "
            "channels, or twice as many, are needed"
        )
    return DiTConfig(
        num_attention_heads=HEADS[width],
        attention_head_dim=width // HEADS[width],
        in_channels=channels,
        out_channels=out,
        num_layers=depth,
        sample_size=side * patch,
        patch_size=patch,
        num_embeds_ada_norm=labels[0] - 1,
        norm_eps=ORIGINAL_EPS,
        arithmetic="original",
    )


def shapes_outside(config: DiTConfig) -> dict[str, Shape]:
    """Of everything that is outside the blocks."""
    width, patch = config.width, config.patch_size
    last = patch**2 * config.channels_out
    return {
        POSITIONS: (1, config.dims.num_tokens, width),
        LABELS: (config.num_embeds_ada_norm + 1, width),
        f"{PATCH_EMBEDDING}.weight": (width, config.in_channels, patch, patch),
        f"{PATCH_EMBEDDING}.bias": (width,),
        **_linear("t_embedder.mlp.0", width, TIME_FEATURES),
        **_linear("t_embedder.mlp.2", width, width),
        **_linear("final_layer.adaLN_modulation.1", 2 * width, width),
        **_linear(LAST, last, width),
    }


def modulation_shapes(config: DiTConfig) -> dict[str, Shape]:
    """Of what a block holds besides its operators."""
    return _linear(MODULATION, 6 * config.width, config.width)


def _linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def check_names(path: Path, expected: Collection[str], found: Collection[str], place: str = "") -> None:
    """Raises ValueError naming tensors in `place` that are missing or superfluous."""
    parts = {"lacks": set(expected) - set(found), "has unexpected": set(found) - set(expected)}
    wrong = [
        f"{what} {named([place + name for name in sorted(names)])}" for what, names in parts.items() if names
    ]
    if wrong:
        raise ValueError(f"{path} {'; '.join(wrong)}")


def check_shapes(
    path: Path, expected: Mapping[str, Shape], found: Mapping[str, Tensor], place: str = ""
) -> None:
    """As `check_names`, and naming the first tensor of another shape."""
    check_names(path, expected, found, place)
    for name, shape in expected.items():
        if tuple(found[name].shape) != shape:
            held = tuple(found[name].shape)
            raise ValueError(f"{path}: {place}{name} has the shape {held}; {shape} is needed")


def check_positions(path: Path, config: DiTConfig, positions_1TD: Tensor) -> None:
    """Raises ValueError unless they are the sines and cosines that are computed here, and need no keeping."""
    computed = empty_transformer(config.model_copy(update={"num_layers": 1})).pos_embed.pos_embed
    error = float((positions_1TD - computed).abs().max())
    if not error <= POSITION_ERROR:
        raise ValueError(
            f"{path}: {POSITIONS} is not the position embedding of a DiT (it differs by {error:.2g}), and "
            "others are not supported"
        )


def outside_state(outside: Mapping[str, Tensor]) -> State:
    """Tensors outside the blocks by their names here, without positions and embedders."""
    return _renamed(OUTSIDE, outside)


def block_state(index: int, outside: Mapping[str, Tensor], block: Mapping[str, Tensor]) -> State:
    """What a block holds here besides its operators: the network's embedders, and its own modulation."""
    inside = _renamed(EMBEDDERS, outside) | _renamed({MODULATION: "norm1.linear"}, block)
    return {f"transformer_blocks.{index}.{name}": tensor for name, tensor in inside.items()}


def _renamed(modules: Mapping[str, str], state: Mapping[str, Tensor]) -> State:
    """Tensors of these modules, by the names of the modules here."""
    found = State()
    for name, tensor in state.items():
        module, _, part = name.rpartition(".")
        if module in modules:
            found[f"{modules[module]}.{part}"] = tensor
    return found

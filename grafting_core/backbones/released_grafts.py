"""Checkpoints of the original DiT's code and of its grafts, taken as they were published.

What a file holds follows from its names and shapes: the transformer's sizes, and an operator at every site.
A name or shape that is not known is refused, so nothing of a file is left out or made up.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from grafting_core.backbones.checkpoint_file import CheckpointFile, Kind, State, check_finite, read_checkpoint
from grafting_core.backbones.diffusers_folder import empty_transformer, shapes_of
from grafting_core.backbones.dit_config import MLP_RATIO, DiTConfig
from grafting_core.backbones.original_checkpoint import (
    HEADS,
    POSITIONS,
    block_state,
    check_positions,
    check_shapes,
    config_of,
    modulation_shapes,
    outside_state,
    shapes_outside,
    split_blocks,
)
from grafting_core.backbones.published_figures import published_fid
from grafting_core.backbones.released_operators import ReadOperator, read_operator
from grafting_core.backbones.weight_files import named
from grafting_core.specs.dims import SLOTS, BlockDims, Slot
from grafting_core.specs.documents.layers import INTERLEAVED_RATIOS, Strategy, resolve
from grafting_core.specs.edits import ReplaceOperator, pretrained_operator
from grafting_core.specs.operators import OperatorBase
from grafting_core.specs.operators.base import operator_label
from grafting_core.specs.site import GraftSite

PLACES: Mapping[Slot, str] = {"attention": "attn.", "mlp": "mlp."}
"""Slot -> beginning of its tensors' names in a block of a file."""
IN_BLOCK: Mapping[Slot, str] = {"attention": "attn1", "mlp": "ff"}
"""Slot -> module of a block here."""
PRETRAINED: Mapping[str, str] = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "out": "to_out.0",
    "expand": "net.0.proj",
    "contract": "net.2",
}
"""Linear layer of an operator of ours -> of the pretrained operator in diffusers."""
BLOCK_OF_PATH = re.compile(r"block_(\d+)(/|$)")
INPUTS = ("qkv.weight", "Wqkv.weight", "in_proj.weight", "fc1.weight")
"""Of operators, the weights whose columns are the network's width."""
GRID = (16, 16)
"""Tokens of the released grafts; an operator of stage 1 tells them only if it has a filter for each."""


@dataclass(frozen=True)
class ImportedCheckpoint:
    """A transformer from a checkpoint, without an autoencoder."""

    path: Path
    kind: Kind
    config: DiTConfig
    """Sizes, the original's arithmetic, and the operators that stand in place of the pretrained ones."""
    state: State
    """Weights by the names of the transformer that the config describes; many are views of the file."""
    figures: Mapping[str, float]
    """Numbers of the training that made it, and of a released graft the FID in its name."""

    @property
    def edits(self) -> tuple[ReplaceOperator, ...]:
        return self.config.edits

    @property
    def origin(self) -> str:
        """`dit-xl2-mha-hyena_x-50p-fid2.61/model.pt`: the file and the folder that it is in."""
        return origin_of(self.path)

    @property
    def summary(self) -> str:
        """`28 blocks of 1152; 50 % of attention: hyena_x`."""
        sizes = f"{self.config.num_layers} blocks of {self.config.width}"
        found = [f"{share_of(slot, self.config)}: {kinds}" for slot, kinds in self._kinds().items()]
        return "; ".join([sizes, *found])

    def _kinds(self) -> dict[Slot, str]:
        """Slot -> kinds of operators that were grafted there."""
        found: dict[Slot, dict[str, None]] = {}
        for edit in self.edits:
            found.setdefault(edit.site.slot, {})[operator_label(edit.operator)] = None
        return {slot: ", ".join(kinds) for slot, kinds in found.items()}


@dataclass(frozen=True)
class ImportedOperator:
    """One distilled operator from a checkpoint of stage 1."""

    path: Path
    operator: OperatorBase
    slot: Slot
    width: int
    site: GraftSite | None
    """Where it belongs, if the file's path names the block."""
    state: State
    figures: Mapping[str, float]

    @property
    def origin(self) -> str:
        return origin_of(self.path)

    @property
    def edit(self) -> ReplaceOperator:
        """The operator at its site. Raises ValueError where the file's path names no block."""
        if self.site is None:
            raise ValueError(f"{self.path} is in no folder block_N, so nothing tells which block it is for")
        return ReplaceOperator(site=self.site, operator=self.operator)


def import_checkpoint(path: Path | str) -> ImportedCheckpoint | ImportedOperator:
    """Read a checkpoint of the original code, a released graft, or an operator of stage 1.

    Runs none of a pickle's code. Raises ValueError that names the file, and the first tensors that are not
    known, missing, of another shape or precision, or not finite; also for a position embedding that is not
    the one computed here.
    """
    file = read_checkpoint(Path(path))
    return _operator(file) if file.kind == "stage1" else _transformer(file)


def origin_of(path: Path) -> str:
    """The file's name and that of the folder that it is in."""
    return f"{folder_name(path)}/{path.name}".lstrip("/")


def folder_name(path: Path) -> str:
    """Name of the folder that a file is in; in a cache of the Hugging Face hub that of the repository.

    The file itself may be a link, as in that cache, where it leads to another that has a digest for its name.
    """
    folder = _place(path).parent
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _place(path: Path) -> Path:
    return path.parent.resolve() / path.name


def share_of(slot: Slot, config: DiTConfig) -> str:
    """`50 % of attention` for one of the paper's choices of blocks, else `3 of 28 attention operators`."""
    blocks = [edit.site.block for edit in config.edits if edit.site.slot == slot]
    depth = config.num_layers
    for ratio in INTERLEAVED_RATIOS:
        if blocks == resolve(Strategy(interleaved=ratio), depth):
            return f"{ratio:.0%} of {slot}".replace("%", " %")
    if len(blocks) == depth:
        return f"100 % of {slot}"
    return f"{len(blocks)} of {depth} {slot} operators"


def _transformer(file: CheckpointFile) -> ImportedCheckpoint:
    path = file.path
    outside, blocks = split_blocks(path, file.state)
    config = config_of(path, outside, len(blocks))
    check_shapes(path, shapes_outside(config), outside)
    state, edits = outside_state(outside), list[ReplaceOperator]()
    for index, tensors in enumerate(blocks):
        state |= block_state(index, outside, tensors)
        for slot, read in _operators(path, config, index, tensors).items():
            site = GraftSite(block=index, slot=slot)
            grafted = read.spec != pretrained_operator(slot, config.dims)
            state |= placed_state(site, read, grafted)
            edits += [ReplaceOperator(site=site, operator=read.spec)] if grafted else []
    check_finite(path, file.state)
    check_positions(path, config, outside[POSITIONS])
    config = DiTConfig(**{**dict(config), "edits": tuple(edits)})
    check_shapes(path, shapes_of(empty_transformer(config)), state)
    figures = {**file.figures, **published_fid(folder_name(path), config)}
    return ImportedCheckpoint(path, file.kind, config, state, figures)


def _operators(path: Path, config: DiTConfig, index: int, tensors: State) -> dict[Slot, ReadOperator]:
    """Both operators of a block. Raises ValueError for tensors that belong to neither."""
    by_slot = {
        slot: {name.removeprefix(place): tensor for name, tensor in tensors.items() if name.startswith(place)}
        for slot, place in PLACES.items()
    }
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(PLACES.values()))}
    check_shapes(path, modulation_shapes(config), rest, f"blocks.{index}.")
    return {
        slot: read_operator(path, slot, config.dims, by_slot[slot], f"blocks.{index}.{PLACES[slot]}")
        for slot in SLOTS
    }


def placed_state(site: GraftSite, read: ReadOperator, grafted: bool) -> State:
    """Weights of an operator by their names in the whole transformer."""
    if grafted:
        return {f"{grafted_place(site)}{name}": tensor for name, tensor in read.state.items()}
    place, found = f"transformer_blocks.{site.block}.{IN_BLOCK[site.slot]}", State()
    for name, tensor in read.state.items():
        module, _, part = name.rpartition(".")
        found[f"{place}.{PRETRAINED[module]}.{part}"] = tensor
    return found


def grafted_place(site: GraftSite) -> str:
    """Beginning of the names of a grafted operator's weights in a transformer without pairs."""
    place = f"transformer_blocks.{site.block}.{IN_BLOCK[site.slot]}."
    return f"{place}operator." if site.slot == "attention" else place


def _operator(file: CheckpointFile) -> ImportedOperator:
    """The network's sizes are taken from the operator's shapes, as far as it has them."""
    path, tensors = file.path, file.state
    width = next((tensors[name].shape[-1] for name in INPUTS if name in tensors and tensors[name].dim()), 0)
    if width not in HEADS:
        held = named(sorted(tensors)) or "nothing"
        raise ValueError(f"{path}: model is no known operator; it holds {held}")
    slot = _slot(tensors)
    dims = BlockDims(width=width, num_heads=HEADS[width], mlp_ratio=MLP_RATIO, grid=_grid(slot, tensors))
    read = read_operator(path, slot, dims, tensors)
    check_finite(path, tensors)
    block = BLOCK_OF_PATH.search(_place(path).as_posix())
    site = GraftSite(block=int(block[1]), slot=slot) if block else None
    return ImportedOperator(path, read.spec, slot, width, site, read.state, file.figures)


def _slot(tensors: Mapping[str, Tensor]) -> Slot:
    """Hyena-X filters every channel of its projections, in the place of an MLP every token."""
    if "fc1.weight" in tensors or "fc2.weight" in tensors:
        return "mlp"
    rows = [tensors[name].numel() for name in ("in_proj.bias", "short_filter.bias") if name in tensors]
    return "mlp" if len(set(rows)) > 1 else "attention"


def _grid(slot: Slot, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    if slot == "mlp" and "short_filter.bias" in tensors:
        side = max(1, round(tensors["short_filter.bias"].numel() ** 0.5))
        return side, side
    return GRID

"""The list of a transformer's blocks, in which two blocks in parallel are one entry."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from grafting_core.backbones.base import Family
from grafting_core.operators.parallel import ParallelBlocks, mean_merge
from grafting_core.operators.table import BUILDERS, build_operator
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.edits import ParallelPair, ReplaceOperator


def single_entries(entries: Iterable[nn.Module]) -> dict[int, int]:
    """Block -> index of its entry, for every block that is not in a pair."""
    found, block = dict[int, int](), 0
    for index, entry in enumerate(entries):
        if isinstance(entry, ParallelBlocks):
            block += 2
        else:
            found[block] = index
            block += 1
    return found


def check_pairs(family: Family, transformer: nn.Module, pairs: Iterable[ParallelPair]) -> None:
    """Raises ValueError for a pair beyond the last block, or of a block that is in a pair already."""
    entries = family.blocks(transformer)
    single = single_entries(entries)
    last = sum(2 if isinstance(entry, ParallelBlocks) else 1 for entry in entries) - 1
    for pair in pairs:
        if pair.blocks[1] > last:
            raise ValueError(f"{pair} exceeds the last block; blocks are 0 to {last}")
        taken = [block for block in pair.blocks if block not in single]
        if taken:
            raise ValueError(f"{pair}: block {taken[0]} of the backbone is in a pair already")


def pair_entries(family: Family, transformer: nn.Module, merges: Mapping[ParallelPair, nn.Module]) -> None:
    """Replace each pair's two entries by one. Raises ValueError as `check_pairs` does, before any change."""
    check_pairs(family, transformer, merges)
    entries = family.blocks(transformer)
    single = single_entries(entries)
    paired, gone = dict[int, nn.Module](), set[int]()
    for pair, merge in merges.items():
        first, second = (single[block] for block in pair.blocks)
        paired[first] = family.pair(entries[first], entries[second], merge)
        gone.add(second)
    kept = [paired.get(index, entry) for index, entry in enumerate(entries) if index not in gone]
    family.set_blocks(transformer, nn.ModuleList(kept))


def place_empty(
    family: Family,
    transformer: nn.Module,
    edits: Iterable[ReplaceOperator],
    pairs: Iterable[ParallelPair],
    dims: BlockDims,
) -> None:
    """Put operators and merges without weights in place, whose parameters are on the meta device.

    Operators of other packages are built on the CPU, as they may hold tensors that no file has.
    """
    for edit in edits:
        device = "meta" if edit.operator.kind in BUILDERS else "cpu"
        with torch.random.fork_rng(devices=[]), torch.device(device):
            operator = build_operator(edit.operator, dims)
        family.set_operator(transformer, edit.site, family.adapt(edit.site, operator))
    with torch.device("meta"):
        merges: dict[ParallelPair, nn.Module] = {pair: mean_merge(dims.width) for pair in pairs}
    pair_entries(family, transformer, merges)

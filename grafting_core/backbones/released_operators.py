"""Operators in the layout of released grafts: which kind a block's tensors are, and their names here.

A kind is recognised by the modules that hold its tensors, its sizes by their shapes. A layout names, for
each tensor of a file, one tensor here, or three that have a third of its rows each; filters [C, 1, K] become
[K, C].
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from grafting_core.backbones.checkpoint_file import State
from grafting_core.backbones.original_checkpoint import check_names, check_shapes
from grafting_core.backbones.weight_files import Shape, named
from grafting_core.operators.table import build_operator
from grafting_core.specs.dims import BlockDims, Slot
from grafting_core.specs.operators import OperatorBase
from grafting_core.specs.operators.attention import MultiHeadAttention, WindowAttention
from grafting_core.specs.operators.hyena import HyenaSE, HyenaX, HyenaY
from grafting_core.specs.operators.mamba import Mamba2
from grafting_core.specs.operators.mlp import Mlp, MlpHyenaX

Shapes = Mapping[str, Shape]
FILTERS = (".weight_KD", ".weight_KT")


@dataclass(frozen=True)
class Layout:
    """One kind of operator in a file: it has all the modules in `marks`, and no layout before it has."""

    names: Mapping[str, tuple[str, ...]]
    spec: Callable[[Shapes, int], OperatorBase]
    """Shapes in the file and the width -> the operator. May fail for shapes of something else."""
    marks: frozenset[str]


def _linear(theirs: str, *ours: str) -> dict[str, tuple[str, ...]]:
    return {f"{theirs}.{part}": tuple(f"{name}.{part}" for name in ours) for part in ("weight", "bias")}


def _filter(theirs: str, ours: str, axis: str = "D") -> dict[str, tuple[str, ...]]:
    return {f"{theirs}.weight": (f"{ours}.weight_K{axis}",), f"{theirs}.bias": (f"{ours}.bias_{axis}",)}


def _mamba2(shapes: Shapes, width: int) -> OperatorBase:
    inner, (heads,) = shapes["norm.weight"][0], shapes["A_log"]
    channels, _, kernel = shapes["conv1d.weight"]
    return Mamba2(
        state_size=(channels - inner) // 2,
        expand=inner // width,
        head_dim=inner // heads,
        kernel_size=kernel,
    )


PROJECTED = _linear("in_proj", "project_in") | _linear("out_proj", "project_out")
SHORT = _filter("short_filter", "featuriser")
INNER = _filter("inner_filter", "inner")
CONV1D = _filter("conv1d", "conv1d")
CHANNELS = _filter("short_filter", "convolution", "T")
KEPT = ("in_proj.weight", "dt_bias", "A_log", "D", "norm.weight", "out_proj.weight")
WINDOW = 4
"""Tokens to either side in the released window attention, which no tensor tells."""

LAYOUTS: Mapping[Slot, tuple[Layout, ...]] = {
    "attention": (
        Layout(
            _linear("qkv", "q", "k", "v") | _linear("proj", "out"),
            lambda shapes, width: MultiHeadAttention(),
            frozenset({"qkv"}),
        ),
        Layout(
            _linear("Wqkv", "q", "k", "v") | _linear("out_proj", "out"),
            lambda shapes, width: WindowAttention(half_width=WINDOW),
            frozenset({"Wqkv"}),
        ),
        Layout({name: (name,) for name in KEPT} | CONV1D, _mamba2, frozenset({"conv1d"})),
        Layout(
            PROJECTED | SHORT | INNER,
            lambda shapes, width: HyenaSE(kernel_size=shapes["short_filter.weight"][2]),
            frozenset({"short_filter", "inner_filter"}),
        ),
        Layout(
            PROJECTED | SHORT,
            lambda shapes, width: HyenaX(kernel_size=shapes["short_filter.weight"][2]),
            frozenset({"short_filter"}),
        ),
        Layout(
            PROJECTED | INNER,
            lambda shapes, width: HyenaY(kernel_size=shapes["inner_filter.weight"][2]),
            frozenset({"inner_filter"}),
        ),
    ),
    "mlp": (
        Layout(
            _linear("fc1", "expand") | _linear("fc2", "contract"),
            lambda shapes, width: Mlp(ratio=shapes["fc1.weight"][0] / width),
            frozenset({"fc1"}),
        ),
        Layout(
            _linear("in_proj", "expand") | _linear("out_proj", "contract") | CHANNELS,
            lambda shapes, width: MlpHyenaX(
                ratio=shapes["in_proj.weight"][0] / (3 * width), kernel_size=shapes["short_filter.weight"][2]
            ),
            frozenset({"short_filter"}),
        ),
    ),
}


@dataclass(frozen=True)
class ReadOperator:
    """An operator of a file, and its weights by the names of the module that is built for it."""

    spec: OperatorBase
    state: State


def read_operator(
    path: Path, slot: Slot, dims: BlockDims, tensors: Mapping[str, Tensor], place: str = ""
) -> ReadOperator:
    """The operator that these tensors, all of one slot of a block, are.

    `place` is the beginning of their names in the file. Raises ValueError naming tensors that no known
    operator has, that one lacks, or that have another shape.
    """
    layout = _layout(path, slot, tensors, place)
    check_names(path, layout.names, tensors, place)
    try:
        spec = layout.spec({name: tuple(tensor.shape) for name, tensor in tensors.items()}, dims.width)
        shapes = _shapes(layout, spec, dims)
    except (ValidationError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: the shapes of {_part(place)} are those of no known operator") from error
    check_shapes(path, shapes, tensors, place)
    return ReadOperator(spec, _converted(layout, tensors))


def _layout(path: Path, slot: Slot, tensors: Collection[str], place: str) -> Layout:
    modules = {name.split(".")[0] for name in tensors}
    found = next((layout for layout in LAYOUTS[slot] if layout.marks <= modules), None)
    if found is None:
        held = named([place + name for name in sorted(tensors)]) or "nothing"
        raise ValueError(f"{path}: {_part(place)} is no known operator; it holds {held}")
    return found


def _part(place: str) -> str:
    """The tensors that begin with `place`, in words; `model` is the entry of a checkpoint of stage 1."""
    return f"{place}*" if place else "model"


def _shapes(layout: Layout, spec: OperatorBase, dims: BlockDims) -> dict[str, Shape]:
    """Shapes in the file, from those of the module that is built. Raises ValueError for misfits."""
    with torch.device("meta"):
        built = {name: tuple(value.shape) for name, value in build_operator(spec, dims).state_dict().items()}
    shapes = dict[str, Shape]()
    for theirs, ours in layout.names.items():
        rows, *rest = built[ours[0]]
        shapes[theirs] = (*rest, 1, rows) if ours[0].endswith(FILTERS) else (len(ours) * rows, *rest)
    return shapes


def _converted(layout: Layout, tensors: Mapping[str, Tensor]) -> State:
    state = State()
    for theirs, ours in layout.names.items():
        if ours[0].endswith(FILTERS):
            state[ours[0]] = tensors[theirs].squeeze(1).T.contiguous()
        else:
            state |= zip(ours, tensors[theirs].chunk(len(ours)), strict=True)
    return state

"""The figure in the name of a released graft, taken only where the file is the model that the name says."""

import re
from collections.abc import Mapping

from grafting_core.backbones.dit_config import DiTConfig
from grafting_core.specs.dims import Slot
from grafting_core.specs.edits import ReplaceOperator
from grafting_core.specs.operators.mlp import Mlp

PUBLISHED_FID = "published_fid"
NAME = re.compile(
    r"dit-xl2-(?P<slot>mha|mlp)-(?P<operator>\w+)-(?P<percent>50|75|100)p-fid(?P<fid>\d{1,4}(\.\d{1,6})?)(_\w+)?"
)
XL2 = (28, 1152, 2)
"""Blocks, width and patch of DiT-XL/2, of which the released grafts are."""
SLOTS: Mapping[str, Slot] = {"mha": "attention", "mlp": "mlp"}
OPERATORS: Mapping[str, str] = {
    "window_attention": "swa",
    "mamba2": "mamba_2",
    "mlp_hyena_x": "hyena_x",
}
"""Kind of an operator here -> in a released graft's name, where they differ."""
UNCHANGED: Mapping[Slot, str] = {"attention": "mha", "mlp": "mlp_r_4"}
"""Operators of self-grafts, which no tensor tells from the pretrained ones."""


def published_fid(folder: str, config: DiTConfig) -> dict[str, float]:
    """The FID in the name of a released graft's folder; nothing where the file is another model."""
    named = NAME.fullmatch(folder)
    if named is None or (config.num_layers, config.width, config.patch_size) != XL2 or config.pairs:
        return {}
    slot, operator = SLOTS[named["slot"]], named["operator"]
    places = {edit.site.slot for edit in config.edits}
    kinds = {_published(edit) for edit in config.edits}
    share = len(config.edits) / config.num_layers
    fits = places == {slot} and kinds == {operator} and share == int(named["percent"]) / 100
    if fits or (not config.edits and operator == UNCHANGED[slot]):
        return {PUBLISHED_FID: float(named["fid"])}
    return {}


def _published(edit: ReplaceOperator) -> str:
    """Name of an operator in the names of released grafts."""
    if type(edit.operator) is Mlp:
        return f"mlp_r_{edit.operator.ratio:g}"
    kind: str = edit.operator.kind
    return OPERATORS.get(kind, kind)

"""Change of cost in each slot, as in the paper's Table 4: relative to all the backbone's operators there."""

from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.base import Frozen
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.dims import SLOTS, BlockDims, Slot
from grafting_core.specs.operators import OperatorBase


class SlotChange(Frozen):
    """Relative changes summed over a slot of all blocks (paper Table 4): 0.01 is one percent more.

    Attention FLOPs are split into operator and features. MLPs are not split: all that the paper lists is
    `operator_flops`, and `feature_flops` is None.
    """

    slot: Slot
    operator_flops: float
    feature_flops: float | None
    num_params: float


def slot_changes(design: GraftDesign, card: BackboneCard) -> tuple[SlotChange, ...]:
    """One entry for each slot that the design edits."""
    edited = [slot for slot in SLOTS if any(edit.site.slot == slot for edit in design.edits)]
    return tuple(_change(slot, design, card) for slot in edited)


def _change(slot: Slot, design: GraftDesign, card: BackboneCard) -> SlotChange:
    old = {site: _costs(card.original(site), slot, card.dims) for site in card.sites if site.slot == slot}
    new = {
        edit.site: _costs(edit.operator, slot, card.dims) for edit in design.edits if edit.site.slot == slot
    }
    whole = [sum(costs[part] for costs in old.values()) for part in range(3)]
    added = [sum(new[site][part] - old[site][part] for site in new) for part in range(3)]
    operator, features, params = (
        extra / total if total else None for extra, total in zip(added, whole, strict=True)
    )
    return SlotChange(
        slot=slot, operator_flops=operator or 0.0, feature_flops=features, num_params=params or 0.0
    )


def _costs(operator: OperatorBase, slot: Slot, dims: BlockDims) -> tuple[int, int, int]:
    """(operator FLOPs, feature FLOPs, parameters) as the paper lists them."""
    flops, params = operator.flops(dims), operator.num_params(dims)
    if slot == "mlp":
        return flops.operator + flops.features, 0, params
    return flops.operator, flops.features, params

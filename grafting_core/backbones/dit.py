"""Where the sites of a diffusers DiT are, and how a block calls what stands there."""

from typing import Any

from torch import Tensor, nn

from grafting_core.specs.site import GraftSite
from grafting_core.surgery.parallel_blocks import ParallelBlocks


class AttentionSlot(nn.Module):
    """Lets an operator stand where diffusers' blocks call attention with arguments it has no use for."""

    def __init__(self, operator: nn.Module) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, hidden_BTD: Tensor, **unused: Any) -> Tensor:
        out: Tensor = self.operator(hidden_BTD)
        return out


def _blocks(transformer: nn.Module) -> list[nn.Module]:
    """In the backbone's own numbering, whatever has been paired."""
    entries = list(transformer.get_submodule("transformer_blocks").children())
    sides = (entry.sides if isinstance(entry, ParallelBlocks) else (entry,) for entry in entries)
    return [block for both in sides for block in both]


def _block(transformer: nn.Module, site: GraftSite) -> nn.Module:
    blocks = _blocks(transformer)
    if site.block >= len(blocks):
        raise ValueError(f"{site} does not exist; blocks are 0 to {len(blocks) - 1}")
    return blocks[site.block]


def get_operator(transformer: nn.Module, site: GraftSite) -> nn.Module:
    """The module standing at `site`, as the block calls it. Raises ValueError beyond the last block."""
    block = _block(transformer, site)
    operator: nn.Module = block.get_submodule("attn1" if site.slot == "attention" else "ff")
    return operator


def set_operator(transformer: nn.Module, site: GraftSite, module: nn.Module) -> None:
    """Put `module` at `site`; it must take what the block passes (see `AttentionSlot`)."""
    setattr(_block(transformer, site), "attn1" if site.slot == "attention" else "ff", module)


def adapt(site: GraftSite, operator: nn.Module) -> nn.Module:
    """An operator [B, T, D] -> [B, T, D], made callable from its slot."""
    return AttentionSlot(operator) if site.slot == "attention" else operator


def projections(original: nn.Module) -> dict[str, Any]:
    """The linear layers of diffusers' attention (q, k, v, out) or feed-forward (expand, contract)."""
    if hasattr(original, "to_q"):
        names = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    else:
        names = {"expand": "net.0.proj", "contract": "net.2"}
    return {ours: original.get_submodule(theirs) for ours, theirs in names.items()}

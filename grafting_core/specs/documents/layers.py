"""Layer selectors: which blocks an edit applies to, resolved to explicit block numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from grafting_core.specs.base import Frozen

INTERLEAVED_RATIOS = (0.5, 0.75)
BlockIndex = Annotated[int, Field(ge=0)]
MAX_LAYERS = 1000
"""Larger than the depth of any backbone."""
FORMS = "'all', a list of block numbers, or one of {interleaved: 0.5 | 0.75}, {deep: share}, {first: share}, {top_local: share}, {low_local: share}"  # noqa: E501 - one message


class Strategy(Frozen):
    """One of the paper's heuristics (section 4.2) with the share of the blocks that it selects.

    `interleaved`: every second block (0.5: 1, 3, 5, ...) or three of four (0.75: all but 0, 4, 8, ...).
    `deep`, `first`: the last or first blocks. `top_local`, `low_local`: the blocks with the most or the least
    local attention, according to the backbone's locality profile.
    """

    interleaved: float | None = None
    deep: float | None = None
    first: float | None = None
    top_local: float | None = None
    low_local: float | None = None


def _form(value: Any) -> str | None:
    if isinstance(value, str):
        return "all"
    if isinstance(value, list | tuple):
        return "explicit"
    if isinstance(value, dict | Strategy):
        return "strategy"
    return None


# Tagged by shape, so that an error message covers only the form that the user chose.
LayerSelector = Annotated[
    Annotated[Literal["all"], Tag("all")]
    | Annotated[tuple[BlockIndex, ...], Field(max_length=MAX_LAYERS), Tag("explicit")]
    | Annotated[Strategy, Tag("strategy")],
    Discriminator(_form, custom_error_type="layer_selector", custom_error_message=f"layers is {FORMS}"),
]


def resolve(
    selector: str | tuple[int, ...] | Strategy, depth: int, locality: Sequence[float] | None = None
) -> list[int]:
    """Explicit block numbers, ascending. Raises ValueError with the correct forms.

    `locality` is the attention mass inside the band, by block, front to back.
    """
    if isinstance(selector, Strategy):
        return _by_strategy(selector, depth, locality)
    if isinstance(selector, str):
        return list(range(depth))
    if not selector:
        raise ValueError("an empty list selects no block; name at least one")
    beyond = [block for block in selector if block >= depth]
    if beyond:
        raise ValueError(f"block {beyond[0]} does not exist; blocks are 0 to {depth - 1}")
    repeated = sorted(block for block, times in Counter(selector).items() if times > 1)
    if repeated:
        raise ValueError(f"block {repeated[0]} is listed more than once")
    return sorted(selector)


def _by_strategy(selector: Strategy, depth: int, locality: Sequence[float] | None) -> list[int]:
    given = {name: share for name, share in selector if share is not None}
    if len(given) != 1:
        raise ValueError(f"layers is {FORMS}; give exactly one of them, not {len(given)}")
    ((name, share),) = given.items()
    if name == "interleaved":
        return _interleaved(share, depth)
    return sorted(_ranked(name, depth, locality)[: _count(name, share, depth)])


def _interleaved(ratio: float, depth: int) -> list[int]:
    if ratio not in INTERLEAVED_RATIOS:
        raise ValueError(f"interleaved is 0.5 or 0.75, not {ratio}")
    period = 2 if ratio == 0.5 else 4
    return [block for block in range(depth) if block % period != 0]


def _count(name: str, share: float, depth: int) -> int:
    """Number of blocks in a share of the depth."""
    count = round(share * depth) if 0 < share <= 1 else 0
    if count < 1:
        raise ValueError(f"{name} is a share from {1 / depth:.3g}, one of {depth} blocks, to 1, not {share}")
    return count


def _ranked(name: str, depth: int, locality: Sequence[float] | None) -> list[int]:
    """All blocks in the strategy's order of preference; ties go to the earlier block."""
    if name == "first":
        return list(range(depth))
    if name == "deep":
        return list(reversed(range(depth)))
    if locality is None:
        raise ValueError(
            f"{name} needs a locality profile, which this backbone lacks; `graft analyze` makes one"
        )
    sign = -1 if name == "top_local" else 1
    return sorted(range(depth), key=lambda block: sign * locality[block])

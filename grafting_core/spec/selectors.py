"""Which blocks an edit touches, and how a selector becomes explicit block numbers."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from grafting_core.spec.base import Frozen

INTERLEAVED_RATIOS = (0.5, 0.75)
BlockIndex = Annotated[int, Field(ge=0)]


class Interleaved(Frozen):
    """Every second block (0.5: 1, 3, 5, ...) or three of four (0.75: all but 0, 4, 8, ...); paper Table 3."""

    interleaved: float


def _form(value: Any) -> str | None:
    if isinstance(value, str):
        return "all"
    if isinstance(value, list | tuple):
        return "explicit"
    if isinstance(value, dict | Interleaved):
        return "interleaved"
    return None


# Tagged by shape, so that an error speaks of the form the user chose and not of all the others.
LayerSelector = Annotated[
    Annotated[Literal["all"], Tag("all")]
    | Annotated[tuple[BlockIndex, ...], Tag("explicit")]
    | Annotated[Interleaved, Tag("interleaved")],
    Discriminator(
        _form,
        custom_error_type="layer_selector",
        custom_error_message="layers is 'all', a list of block numbers, or {interleaved: 0.5 | 0.75}",
    ),
]


def resolve(selector: str | tuple[int, ...] | Interleaved, depth: int) -> list[int]:
    """Explicit block numbers, ascending. Raises ValueError with what would be right."""
    if isinstance(selector, Interleaved):
        return _interleaved(selector.interleaved, depth)
    if isinstance(selector, str):
        return list(range(depth))
    if not selector:
        raise ValueError("an empty list selects no block; name at least one")
    beyond = [block for block in selector if block >= depth]
    if beyond:
        raise ValueError(f"block {beyond[0]} does not exist; blocks are 0 to {depth - 1}")
    repeated = sorted({block for block in selector if selector.count(block) > 1})
    if repeated:
        raise ValueError(f"block {repeated[0]} is listed more than once")
    return sorted(selector)


def _interleaved(ratio: float, depth: int) -> list[int]:
    if ratio not in INTERLEAVED_RATIOS:
        raise ValueError(f"interleaved is 0.5 or 0.75, not {ratio}")
    period = 2 if ratio == 0.5 else 4
    return [block for block in range(depth) if block % period != 0]

"""Edits of a design file, and their resolution to a `GraftDesign`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.base import Frozen
from grafting_core.specs.design import GraftDesign, Init, ParallelPair, ReplaceOperator
from grafting_core.specs.dims import Slot
from grafting_core.specs.documents.errors import Problem, pointer, shown
from grafting_core.specs.documents.layers import MAX_LAYERS, BlockIndex, LayerSelector, resolve
from grafting_core.specs.operators import OperatorBase, OperatorSpec, kinds_for
from grafting_core.specs.site import GraftSite


class ReplaceEdit(Frozen):
    """Replace the operators of one slot in the selected blocks."""

    replace: Slot
    layers: LayerSelector
    with_: Annotated[OperatorSpec, Field(alias="with")]
    init: Init = "random"


def _pairing_form(value: Any) -> str | None:
    if isinstance(value, str):
        return "all"
    return "explicit" if isinstance(value, list | tuple) else None


PAIRINGS = "parallel_pairs is 'all' or a list of pairs such as [[0, 1], [4, 5]]"
Pairing = Annotated[
    Annotated[Literal["all"], Tag("all")]
    | Annotated[tuple[tuple[BlockIndex, BlockIndex], ...], Field(max_length=MAX_LAYERS), Tag("explicit")],
    Discriminator(_pairing_form, custom_error_type="pairing", custom_error_message=PAIRINGS),
]


class PairEdit(Frozen):
    """Run neighbouring blocks in parallel and merge their outputs: `all`, or pairs such as [0, 1].

    A pair takes its blocks as the edits before it left them; later edits cannot change a block inside a
    pair.
    """

    parallel_pairs: Pairing


def _form(value: Any) -> str:
    paired = "parallel_pairs" in value if isinstance(value, dict) else isinstance(value, PairEdit)
    return "pairing" if paired else "replacement"


Edit = Annotated[
    Annotated[ReplaceEdit, Tag("replacement")] | Annotated[PairEdit, Tag("pairing")], Discriminator(_form)
]


def problem(path: tuple[object, ...], code: str, message: str, given: Any, allowed: Any = ()) -> Problem:
    """Error at a place of the document."""
    return Problem(
        pointer=pointer(*path), code=code, message=message, given=shown(given), allowed=tuple(allowed)
    )


@dataclass
class EditResolver:
    """Resolves the edits of one document in order and collects errors in `problems`."""

    card: BackboneCard
    locality: tuple[float, ...] | None
    problems: list[Problem] = field(default_factory=list)
    _placed: dict[GraftSite, ReplaceOperator] = field(default_factory=dict)
    _paired: dict[int, tuple[ParallelPair, int]] = field(default_factory=dict)
    """Block -> the pair that contains it, and the index of the edit that made the pair."""

    def take(self, index: int, edit: Edit) -> None:
        """Resolve edit number `index`, or add its errors to `problems`."""
        if isinstance(edit, PairEdit):
            self._pair(index, edit)
            return
        self.problems += _operator_problems(index, edit, self.card)
        for site in self._sites(index, edit):
            self.problems += _inheritance_problems(index, edit, self.card.original(site), site)
            self._place(index, ReplaceOperator(site=site, operator=edit.with_, init=edit.init))

    def design(self) -> GraftDesign:
        """Design that results from the edits so far."""
        pairs = {pair for pair, _ in self._paired.values()}
        return GraftDesign.of(self.card.ref, [*self._placed.values(), *pairs])

    def _sites(self, index: int, edit: ReplaceEdit) -> list[GraftSite]:
        try:
            blocks = resolve(edit.layers, self.card.depth, self.locality)
        except ValueError as error:
            given = edit.model_dump(mode="json")["layers"]
            self.problems.append(problem(("edits", index, "layers"), "bad-layers", str(error), given))
            return []
        return [GraftSite(block=block, slot=edit.replace) for block in blocks]

    def _place(self, index: int, edit: ReplaceOperator) -> None:
        site, path = edit.site, ("edits", index, "layers")
        if site.block in self._paired:
            pair, by = self._paired[site.block]
            message = f"{site} is inside {pair} since edit {by}; list replacements before the pairing"
            self.problems.append(problem(path, "site-consumed", message, site.block))
        elif site in self._placed:
            message = f"{site} is edited twice; at most one edit per site is allowed"
            self.problems.append(problem(path, "site-edited-twice", message, site.block))
        self._placed[site] = edit

    def _pair(self, index: int, edit: PairEdit) -> None:
        path: tuple[object, ...] = ("edits", index, "parallel_pairs")
        if edit.parallel_pairs == "all":
            self._pair_all(index, path)
            return
        if not edit.parallel_pairs:
            message = "an empty list selects no pair; name at least one, such as [0, 1]"
            self.problems.append(problem(path, "bad-pairs", message, []))
        for number, blocks in enumerate(edit.parallel_pairs):
            self._consume(index, (*path, number), *blocks)

    def _pair_all(self, index: int, path: tuple[object, ...]) -> None:
        if self.card.depth % 2:
            message = f"{self.card.depth} blocks cannot all be paired; list the pairs"
            self.problems.append(problem(path, "bad-pairs", message, "all"))
            return
        for first in range(0, self.card.depth, 2):
            self._consume(index, path, first, first + 1)

    def _consume(self, index: int, path: tuple[object, ...], first: int, second: int) -> None:
        for message in self._pair_problems(first, second):
            self.problems.append(problem(path, "bad-pairs", message, [first, second]))
            return
        pair = ParallelPair(first=first)
        self._paired |= dict.fromkeys(pair.blocks, (pair, index))

    def _pair_problems(self, first: int, second: int) -> Iterator[str]:
        last = self.card.depth - 1
        if second != first + 1:
            yield f"a pair is two neighbours, such as [{first}, {first + 1}], not [{first}, {second}]"
        if max(first, second) > last:
            yield f"[{first}, {second}] exceeds the last block; blocks are 0 to {last}"
        for block in (first, second):
            for pair in self.card.pairs:
                if block in pair.blocks:
                    yield f"block {block} is in {pair} of {self.card.name}; pairs must not share blocks"
            if block in self._paired:
                yield f"block {block} is already in {self._paired[block][0]}; pairs must not share blocks"


def _inheritance_problems(
    index: int, edit: ReplaceEdit, original: OperatorBase, site: GraftSite
) -> list[Problem]:
    if edit.init != "inherit" or original.gives or not edit.with_.inherits:
        return []
    message = f"the backbone has {original.kind} at {site}, whose weights fit no other operator"
    return [problem(("edits", index, "init"), "cannot-inherit", message, edit.init, ["random"])]


def _operator_problems(index: int, edit: ReplaceEdit, card: BackboneCard) -> list[Problem]:
    operator, allowed = edit.with_, kinds_for(edit.replace)
    if edit.replace not in operator.slots:
        message = f"{operator.kind} fits the {operator.slots[0]} slot, not {edit.replace}"
        message += f"; use one of {', '.join(allowed)}"
        return [problem(("edits", index, "with", "kind"), "wrong-slot", message, operator.kind, allowed)]
    if edit.init == "inherit" and not operator.inherits:
        message = f"{operator.kind} shares no weights with the operator that it replaces; it starts random"
        return [problem(("edits", index, "init"), "cannot-inherit", message, edit.init, ["random"])]
    return [
        problem(("edits", index, "with", name), "out-of-range", f"should be {right}", getattr(operator, name))
        for name, right in operator.problems(card.dims)
    ]

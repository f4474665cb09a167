"""Search space of a study: items that cover sites; a design has one item for every site."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Union

from pydantic import Field

from grafting_core.specs.backbone import BackboneCard, BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.canonical import digest
from grafting_core.specs.design import GraftDesign, ParallelPair, ReplaceOperator
from grafting_core.specs.operators import OPERATORS, OperatorBase
from grafting_core.specs.operators.base import operator_label
from grafting_core.specs.site import GraftSite

Cost = Literal["flops", "params", "latency"]
"""Costs of a design: FLOPs and seconds of one forward, parameters."""
KEEP, SPLIT, MERGED = "keep", "split", "merged"
Assignment = Mapping[str, str]
"""Variable -> label of its item. Variables inside a merged pair may be left out."""


class Keep(Frozen):
    """Keep the backbone's own operator."""

    kind: Literal["keep"] = "keep"


if TYPE_CHECKING:
    Choice = Keep | OperatorBase
else:
    Choice = Annotated[Union[(Keep, *OPERATORS)], Field(discriminator="kind")]


class Item(Frozen):
    """A choice for `sites`, and its change to the backbone's totals."""

    variable: str
    label: str
    sites: tuple[GraftSite, ...]
    edits: tuple[ReplaceOperator, ...] = ()
    pair: ParallelPair | None = None
    params: int = 0
    flops: int = 0
    latency: float = 0.0
    """Change as a share of the backbone's forward; measured on the study's device before proposals."""

    added: ClassVar[frozenset[str]] = frozenset({"latency"})

    @property
    def key(self) -> str:
        return f"{self.variable}: {self.label}"

    @property
    def is_keep(self) -> bool:
        return not self.edits and self.pair is None


class Variable(Frozen):
    """Sites that share one choice, and the items to choose from."""

    name: str
    items: tuple[Item, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(item.label for item in self.items)

    def item(self, label: str) -> Item:
        """Item of this label. Raises ValueError with the labels that exist."""
        found = [item for item in self.items if item.label == label]
        if not found:
            raise ValueError(f"{self.name} has no choice {label!r}; it has {', '.join(self.labels)}")
        return found[0]


class Space(Frozen):
    """Variables front to back, and pairs of blocks that can be merged instead of choosing inside them."""

    backbone: BackboneRef
    base_params: int
    base_flops: int
    variables: tuple[Variable, ...]
    pairs: tuple[Item, ...] = ()

    @property
    def base_latency(self) -> float:
        """Latency of the backbone's forward, which is the unit."""
        return 1.0

    @cached_property
    def items(self) -> tuple[Item, ...]:
        return (*(item for variable in self.variables for item in variable.items), *self.pairs)

    @property
    def size(self) -> int:
        """Number of designs in the space, without those that merge pairs."""
        count = 1
        for variable in self.variables:
            count *= len(variable.items)
        return count

    @cached_property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """Name -> labels of every categorical choice, pairs first, because they override others."""
        pairs = {item.variable: (SPLIT, MERGED) for item in self.pairs}
        return pairs | {variable.name: variable.labels for variable in self.variables}

    def chosen(self, assignment: Assignment) -> tuple[Item, ...]:
        """Items of an assignment, covering every site once. Raises ValueError for a missing variable.

        Of overlapping merged pairs the first in order is used.
        """
        taken: list[Item] = []
        covered: set[GraftSite] = set()
        for pair in self.pairs:
            if assignment.get(pair.variable) == MERGED and covered.isdisjoint(pair.sites):
                taken.append(pair)
                covered |= set(pair.sites)
        for variable in self.variables:
            if covered.isdisjoint(variable.items[0].sites):
                if variable.name not in assignment:
                    raise ValueError(f"{variable.name} has no value; use one of {', '.join(variable.labels)}")
                taken.append(variable.item(assignment[variable.name]))
        return tuple(taken)

    def assignment(self, chosen: Sequence[Item]) -> dict[str, str]:
        """Canonical assignment of items, without variables inside merged pairs."""
        merged = {item.variable for item in chosen if item.pair}
        pairs = {pair.variable: MERGED if pair.variable in merged else SPLIT for pair in self.pairs}
        return pairs | {item.variable: item.label for item in chosen if item.pair is None}

    def design(self, chosen: Sequence[Item]) -> GraftDesign:
        """Design of the chosen items."""
        edits = [edit for item in chosen for edit in item.edits]
        return GraftDesign.of(self.backbone, [*edits, *(item.pair for item in chosen if item.pair)])

    def params(self, chosen: Sequence[Item]) -> int:
        return self.base_params + sum(item.params for item in chosen)

    def flops(self, chosen: Sequence[Item]) -> int:
        """FLOPs of one forward."""
        return self.base_flops + sum(item.flops for item in chosen)

    def latency(self, chosen: Sequence[Item]) -> float:
        """Latency of one forward, as a share of the backbone's."""
        return self.base_latency + sum(item.latency for item in chosen)

    def total(self, cost: Cost, chosen: Sequence[Item]) -> float:
        """The chosen items' total of any of the costs."""
        return {"flops": self.flops, "params": self.params, "latency": self.latency}[cost](chosen)

    def base(self, cost: Cost) -> float:
        """Total of the unchanged backbone."""
        return {"flops": self.base_flops, "params": self.base_params, "latency": self.base_latency}[cost]


def design_key(design: GraftDesign) -> str:
    """Digest of a design alone, independent of training settings: equal keys, equal designs."""
    return digest({"design": design})


def label_of(choice: Choice) -> str:
    """`mlp(ratio=3)`: the kind and the fields that differ from their defaults."""
    if isinstance(choice, Keep):
        return KEEP
    return operator_label(choice)


def variable_of(card: BackboneCard, sites: Sequence[GraftSite], choices: Sequence[Choice]) -> Variable:
    """Variable for sites of one slot, which share every choice."""
    blocks = "+".join(str(site.block) for site in sites)
    name = f"{sites[0].slot} {blocks}"
    return Variable(name=name, items=tuple(_item(card, name, tuple(sites), choice) for choice in choices))


def _item(card: BackboneCard, variable: str, sites: tuple[GraftSite, ...], choice: Choice) -> Item:
    if isinstance(choice, Keep):
        return Item(variable=variable, label=KEEP, sites=sites)
    old = [card.original(site) for site in sites]
    params = len(old) * choice.num_params(card.dims) - sum(each.num_params(card.dims) for each in old)
    flops = len(old) * choice.computed_flops(card.dims) - sum(each.computed_flops(card.dims) for each in old)
    return Item(
        variable=variable,
        label=label_of(choice),
        sites=sites,
        edits=tuple(ReplaceOperator(site=site, operator=choice) for site in sites),
        params=params,
        flops=flops,
    )


def pair_of(card: BackboneCard, pair: ParallelPair) -> Item:
    """Item that runs two blocks in parallel, with their own operators."""
    sites = tuple(site for site in card.sites if site.block in pair.blocks)
    return Item(
        variable=str(pair),
        label=MERGED,
        sites=sites,
        pair=pair,
        params=pair.num_params(card.dims),
        flops=pair.flops(card.dims),
    )

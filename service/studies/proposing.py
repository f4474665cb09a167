"""The designs of one round: the integer program's, the baselines', and the sampler's mended to the limits."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from grafting_core.specs.studies.integer_program import Chosen, NoDesign, Proposer
from grafting_core.specs.studies.space import Cost, Space, design_key
from grafting_core.specs.studies.study import StudySpec
from service.studies.optuna_study import Known, OptunaMirror

MILP_SHARE = 0.2
"""Of a round's designs, those the integer program seeds the sampler with."""
ASKS_A_DESIGN = 5
"""Proposals looked at for every design that is wanted: a small space repeats itself."""
DISTANCE = 2


@dataclass(frozen=True)
class Proposal:
    """One design to screen, and who proposed it."""

    proposed_by: str
    chosen: Chosen
    optuna_number: int
    baselines: tuple[str, ...] = ()


@dataclass
class Round:
    """Collects a round's proposals; a design that the study has is never collected again."""

    spec: StudySpec
    number: int
    proposer: Proposer
    book: OptunaMirror
    known: Mapping[str, Known]
    """Design key -> trial, of all earlier rounds."""
    found: dict[str, Proposal] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return self.spec.share(self.spec.trials - len(self.known), self.number)

    @property
    def missing(self) -> int:
        return self.count - len(self.found)

    def collect(self, baselines: Mapping[str, Chosen]) -> list[Proposal]:
        """Up to the round's share of the study's trials. Raises NoDesign where nothing meets the limits."""
        for names in self._same_designs(baselines):
            self._add("baseline", baselines[names[0]], baselines=tuple(names))
        alone = self.spec.sampler.kind == "milp"
        self._seed(self.count if alone else max(1, round(self.count * MILP_SHARE)))
        if not alone:
            self._ask()
        return list(self.found.values())

    def _same_designs(self, baselines: Mapping[str, Chosen]) -> Iterable[list[str]]:
        """Names of baselines, those together that come to one design at these limits."""
        named: dict[str, list[str]] = {}
        for name, chosen in baselines.items():
            named.setdefault(self._key(chosen), []).append(name)
        return named.values()

    def _seed(self, count: int) -> None:
        """Half of them along the Pareto front of score against FLOPs or seconds, half around the optimum."""
        wanted = min(self.missing, count)
        cost: Cost = "latency" if self.spec.needs_latency else "flops"
        front = self.proposer.sweep(cost, max(2, wanted // 2))[-max(1, wanted // 2) :] if wanted else []
        for chosen in [*front, *self._diverse(wanted)]:
            if wanted > 0 and self._add("milp", chosen):
                wanted -= 1

    def _diverse(self, count: int) -> Iterator[Chosen]:
        """Best first; as long as it is asked."""
        earlier: list[Chosen] = []
        distance = DISTANCE
        while len(earlier) < 3 * count:
            try:
                earlier.append(self.proposer.best(earlier, distance))
            except NoDesign:
                if distance == 1:
                    return
                distance = 1
                continue
            yield earlier[-1]

    def _ask(self) -> None:
        """The sampler's; after one that is nothing new one by chance, or it might come for ever."""
        kind = self.spec.sampler.kind
        for draw in range(ASKS_A_DESIGN * self.count):
            if self.missing <= 0:
                return
            number, assignment = self.book.ask(self.number * 1_000_000 + draw, kind)
            new = self._take(kind, number, self._space.chosen(assignment))
            kind = self.spec.sampler.kind if new else "random"

    def _take(self, proposed_by: str, number: int, asked: Chosen) -> bool:
        """Whether a proposal, moved to the nearest design that meets the limits, is new."""
        if not self.proposer.meets(asked):
            self.book.tell(number, None)
            return self._add(proposed_by, self.proposer.nearest(asked))
        if self._add(proposed_by, asked, number):
            return True
        self.book.tell(number, self._value_of(asked))
        return False

    def _value_of(self, chosen: Chosen) -> Sequence[float] | None:
        """What is known of a design already: a repetition is told its value at once."""
        trial = self.known.get(self._key(chosen))
        return trial.values if trial else None

    def _add(
        self, proposed_by: str, chosen: Chosen, number: int | None = None, baselines: tuple[str, ...] = ()
    ) -> bool:
        """False for what the study has. A design without a number is entered into Optuna's book."""
        key = self._key(chosen)
        if self.missing <= 0 or key in self.found or key in self.known:
            return False
        if number is None:
            number = self.book.enter(self._space.assignment(chosen))
        self.found[key] = Proposal(proposed_by, chosen, number, baselines)
        return True

    def _key(self, chosen: Chosen) -> str:
        return design_key(self._space.design(chosen))

    @property
    def _space(self) -> Space:
        return self.spec.space

"""Designs of one round: from the integer program, the baselines, and the sampler, all within the limits."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from grafting_core.specs.studies.integer_program import Chosen, NoDesign, Proposer
from grafting_core.specs.studies.space import Cost, Space, design_key
from grafting_core.specs.studies.study import StudySpec
from service.studies.optuna_study import Known, OptunaMirror

MILP_SHARE = 0.2
"""Share of a round's designs with which the integer program seeds the sampler."""
ASKS_A_DESIGN = 5
"""Limit of the sampler's proposals per design: a small space repeats itself."""
DISTANCE = 2


@dataclass(frozen=True)
class Proposal:
    """One design to screen, with its proposer."""

    proposed_by: str
    chosen: Chosen
    optuna_number: int
    baselines: tuple[str, ...] = ()


@dataclass
class Round:
    """Collects a round's proposals, without designs that the study already has."""

    spec: StudySpec
    number: int
    proposer: Proposer
    book: OptunaMirror
    known: Mapping[str, Known]
    """Design key -> trial, of all earlier rounds."""
    collected: dict[str, Proposal] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return self.spec.share(self.spec.trials - len(self.known), self.number)

    @property
    def missing(self) -> int:
        return self.count - len(self.collected)

    def collect(self, baselines: Mapping[str, Chosen]) -> list[Proposal]:
        """Return proposals up to the round's share of the study's trials. Raises NoDesign if none meets the
        limits.
        """
        for names in self._same_designs(baselines):
            self._add("baseline", baselines[names[0]], baselines=tuple(names))
        alone = self.spec.sampler.kind == "milp"
        self._seed(self.count if alone else max(1, round(self.count * MILP_SHARE)))
        if not alone:
            self._sample()
        return list(self.collected.values())

    def _same_designs(self, baselines: Mapping[str, Chosen]) -> Iterable[list[str]]:
        """Group the names of baselines that are the same design at these limits."""
        named: dict[str, list[str]] = {}
        for name, chosen in baselines.items():
            named.setdefault(self._key(chosen), []).append(name)
        return named.values()

    def _seed(self, count: int) -> None:
        """Seed half along the Pareto front of score against FLOPs or seconds, half around the optimum."""
        open_places = min(self.missing, count)
        cost: Cost = "latency" if self.spec.needs_latency else "flops"
        front = (
            self.proposer.sweep(cost, max(2, open_places // 2))[-max(1, open_places // 2) :]
            if open_places
            else []
        )
        for chosen in [*front, *self._diverse(open_places)]:
            if open_places > 0 and self._add("milp", chosen):
                open_places -= 1

    def _diverse(self, count: int) -> Iterator[Chosen]:
        """Yield diverse designs, best first."""
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

    def _sample(self) -> None:
        """Ask the sampler; after a duplicate, draw one at random so the loop cannot repeat."""
        kind = self.spec.sampler.kind
        for draw in range(ASKS_A_DESIGN * self.count):
            if self.missing <= 0:
                return
            number, assignment = self.book.ask(self.number * 1_000_000 + draw, kind)
            new = self._take(kind, number, self._space.chosen(assignment))
            kind = self.spec.sampler.kind if new else "random"

    def _take(self, proposed_by: str, number: int, proposal: Chosen) -> bool:
        """Add a proposal, moved to the nearest design that meets the limits; return whether it is new."""
        if not self.proposer.meets(proposal):
            self.book.tell(number, None)
            return self._add(proposed_by, self.proposer.nearest(proposal))
        if self._add(proposed_by, proposal, number):
            return True
        self.book.tell(number, self._value_of(proposal))
        return False

    def _value_of(self, chosen: Chosen) -> Sequence[float] | None:
        """Return the known values of a design, which a duplicate gets at once."""
        trial = self.known.get(self._key(chosen))
        return trial.values if trial else None

    def _add(
        self, proposed_by: str, chosen: Chosen, number: int | None = None, baselines: tuple[str, ...] = ()
    ) -> bool:
        """Add a design; False if the study has it. A design without a number is entered in Optuna."""
        key = self._key(chosen)
        if self.missing <= 0 or key in self.collected or key in self.known:
            return False
        if number is None:
            number = self.book.enter(self._space.assignment(chosen))
        self.collected[key] = Proposal(proposed_by, chosen, number, baselines)
        return True

    def _key(self, chosen: Chosen) -> str:
        return design_key(self._space.design(chosen))

    @property
    def _space(self) -> Space:
        return self.spec.space

"""Mirror of a study in Optuna's own database.

Our tables record proposals and results; whatever Optuna lacks is entered again. Its trials carry our
numbers; a trial without one (after a crash between its commit and ours) is marked as failed. The scheduler
leases our runs, so Optuna's heartbeats are off.
"""

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import NSGAIISampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from grafting_core.specs.canonical import digest
from grafting_core.specs.studies.space import MERGED, Space
from grafting_core.specs.studies.study import Sampler, SamplerKind
from service.domain.study_samplers import ARGUMENTS, CLASSES

NUMBER = "graftlab_trial"
BUSY_SECONDS = 30.0
"""Time for which a writer waits for another on SQLite: several studies may take steps at once."""
OPENING = threading.Lock()
"""Optuna creates its tables when first opened, which fails if two threads do so at once."""


def quiet() -> None:
    """Silence Optuna's messages about every trial and its warnings of renames; our versions are pinned."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)


@dataclass(frozen=True)
class Known:
    """A trial from our tables. `values` are its objectives, if known."""

    number: int
    assignment: Mapping[str, str]
    values: tuple[float, ...] | None
    optuna_number: int | None


class OptunaMirror:
    """One study in Optuna's database."""

    def __init__(
        self, url: str, study_id: str, space: Space, sampler: Sampler, objectives: Sequence[str]
    ) -> None:
        self._space, self._sampler = space, sampler
        quiet()
        with OPENING:
            self.study = optuna.create_study(
                study_name=study_id,
                storage=RDBStorage(url, engine_kwargs=_engine_options(url), heartbeat_interval=None),
                directions=["minimize"] * len(objectives),
                load_if_exists=True,
            )
        self.study.set_metric_names(list(objectives))

    def reconcile(self, known: Sequence[Known]) -> None:
        """Make Optuna's trials equal ours. Safe to repeat; rebuilds a lost database."""
        for _ in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self.tell(self.study.ask().number, None)  # its process died while it was entered
        ours = {trial.optuna_number: trial for trial in known if trial.optuna_number is not None}
        entered: set[int] = set()
        for frozen in self.study.get_trials(deepcopy=False):
            number = frozen.user_attrs.get(NUMBER)
            if frozen.state == TrialState.COMPLETE and isinstance(number, int):
                entered.add(number)
            elif frozen.state == TrialState.RUNNING:
                entered |= self._settle(frozen, ours.get(frozen.number))
        for trial in known:
            if trial.values is not None and trial.number not in entered:
                self._add(trial)

    def _settle(self, frozen: optuna.trial.FrozenTrial, ours: Known | None) -> set[int]:
        """Give an open trial its result; one that our tables do not have has failed."""
        if ours is None or frozen.params != self._params(ours.assignment):
            self.study.tell(frozen.number, state=TrialState.FAIL)
            return set()
        if ours.values is None:
            return set()
        self.study._storage.set_trial_user_attr(frozen._trial_id, NUMBER, ours.number)
        self.study.tell(frozen.number, list(ours.values))
        return {ours.number}

    def _add(self, trial: Known) -> None:
        assert trial.values is not None
        entered = self._entered(trial.assignment)
        entered.set_user_attr(NUMBER, trial.number)
        self.tell(entered.number, trial.values)

    def enter(self, assignment: Mapping[str, str]) -> int:
        """Enter a design that the sampler did not propose, and return its Optuna number; it counts as
        proposed.
        """
        return self._entered(assignment).number

    def _entered(self, assignment: Mapping[str, str]) -> optuna.Trial:
        self.study.sampler = RandomSampler()
        self.study.enqueue_trial(self._params(assignment))
        trial = self.study.ask()
        self._suggest(trial)
        if self._sampler.kind == "nsga2":  # nsga2 selects parents by generation, which entered trials lack
            frozen = self.study.get_trials(deepcopy=False)[trial.number]
            NSGAIISampler(**ARGUMENTS["nsga2"]).get_trial_generation(self.study, frozen)
        return trial

    def _labels(self, name: str) -> tuple[str, ...]:
        return self._space.parameters[name]

    def _params(self, assignment: Mapping[str, str]) -> dict[str, str]:
        return {name: assignment[name] for name in self._names(assignment)}

    def _names(self, assignment: Mapping[str, str]) -> list[str]:
        """Return the names of parameters that are assigned and have a choice."""
        return [
            name for name, labels in self._space.parameters.items() if name in assignment and len(labels) > 1
        ]

    def ask(self, draw: int, kind: SamplerKind) -> tuple[int, dict[str, str]]:
        """Return (Optuna's number, assignment) of a new proposal; the same draw of the same history is the
        same.
        """
        seed = int(digest({"seed": self._sampler.seed, "draw": draw})[:8], 16)
        self.study.sampler = getattr(optuna.samplers, CLASSES[kind])(seed=seed, **ARGUMENTS[kind])
        trial = self.study.ask()
        return trial.number, self._suggest(trial)

    def _suggest(self, trial: optuna.Trial) -> dict[str, str]:
        merged = {
            pair.variable: trial.suggest_categorical(pair.variable, self._labels(pair.variable))
            for pair in self._space.pairs
        }
        covered = {
            site for pair in self._space.pairs if merged[pair.variable] == MERGED for site in pair.sites
        }
        chosen = {
            variable.name: trial.suggest_categorical(variable.name, variable.labels)
            if len(variable.labels) > 1
            else variable.labels[0]
            for variable in self._space.variables
            if covered.isdisjoint(variable.items[0].sites)
        }
        return {**merged, **chosen}

    def tell(self, optuna_number: int, values: Sequence[float] | None) -> None:
        """Give a proposal its values, or mark it as failed."""
        if values is None:
            self.study.tell(optuna_number, state=TrialState.FAIL)
        else:
            self.study.tell(optuna_number, list(values))


def _engine_options(url: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": BUSY_SECONDS}} if url.startswith("sqlite") else {}

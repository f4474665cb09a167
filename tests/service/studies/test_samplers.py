"""Whoever proposes: designs within the limits, each once, the same ones for the same seed."""

import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import get_args

import optuna
import pytest

from grafting_core.specs.studies.integer_program import Proposer
from grafting_core.specs.studies.study import SamplerKind, StudySpec
from service.db.study_tables import TrialRow
from service.studies import optuna_study
from tests.support.study_proposals import FEW, TRIALS, document, rounds

pytestmark = pytest.mark.large

KINDS: tuple[SamplerKind, ...] = get_args(SamplerKind)
LEARNING: tuple[SamplerKind, ...] = ("tpe", "gp")
WITHOUT_TORCH: tuple[SamplerKind, ...] = ("tpe", "nsga2", "random", "milp")
SMALL = {
    "space": {"attention": ["keep", "hyena_x"], "groups": {"attention": [[1], [3], [5], [7]]}},
    "limits": {},
}


Found = tuple[StudySpec, list[TrialRow]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[SamplerKind], Found]:
    """Both rounds of each sampler, once."""
    return cache(
        lambda kind: rounds(tmp_path_factory.mktemp(kind), document(kind, screening={"trials": FEW}))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_proposal_is_another_design_within_the_limits(
    found: Callable[[SamplerKind], Found], kind: SamplerKind
) -> None:
    spec, trials = found(kind)
    proposer = Proposer(spec.space, {}, spec.limits)
    assert all(proposer.meets(spec.space.chosen(trial.assignment)) for trial in trials)
    assert len({trial.design_key for trial in trials}) == len(trials) == spec.trials
    assert kind in {trial.proposed_by for trial in trials if trial.round == 2}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_proposes_the_same_designs(
    found: Callable[[SamplerKind], Found], tmp_path: Path, kind: SamplerKind
) -> None:
    _, again = rounds(tmp_path, document(kind, screening={"trials": FEW}))
    assert [trial.assignment for trial in again] == [trial.assignment for trial in found(kind)[1]]


@pytest.mark.parametrize("kind", LEARNING)
def test_a_sampler_that_learns_proposes_better_designs_in_its_second_round(
    found: Callable[[SamplerKind], Found], kind: SamplerKind
) -> None:
    _, trials = found(kind)
    own = [[t.screened["loss_gap"] for t in trials if (t.proposed_by, t.round) == (kind, n)] for n in (1, 2)]
    assert statistics.mean(own[1]) < statistics.mean(own[0])


def test_the_second_round_is_bred_from_the_first_though_limits_changed_every_proposal(tmp_path: Path) -> None:
    rounds(tmp_path, document("nsga2", screening={"trials": TRIALS}))
    generations = Counter(
        trial.system_attrs["NSGAIISampler:generation"]
        for trial in book_in(tmp_path).get_trials()
        if trial.state != optuna.trial.TrialState.FAIL
    )
    assert generations == {0: TRIALS // 2, 1: TRIALS // 2}


def book_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="study", storage=f"sqlite:///{folder / 'optuna.db'}")


def test_another_seed_proposes_other_designs(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, other = (
        rounds(folder, document("random", seed, screening={"trials": 8}))[1]
        for seed, folder in enumerate((tmp_path, tmp_path / "other"))
    )
    assert [trial.assignment for trial in one] != [trial.assignment for trial in other]


@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_design_is_told_its_known_value_and_is_no_second_trial(
    tmp_path: Path, kind: SamplerKind
) -> None:
    _, trials = rounds(tmp_path, document(kind, screening={"trials": 24}, **SMALL))
    assert len({trial.design_key for trial in trials}) == len(trials) <= 16
    values = {str(trial.assignment): trial.screened["loss_gap"] for trial in trials if trial.round == 1}
    told = defaultdict(set)
    complete = book_in(tmp_path).get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    for trial in complete:
        told[str(trial.params)].add(trial.value)
    assert told
    assert all(found == {values[params]} for params, found in told.items() if params in values)
    if kind in ("random", "tpe", "nsga2"):
        assert any(optuna_study.NUMBER not in trial.user_attrs for trial in complete)


@pytest.mark.large
@pytest.mark.timeout(900)  # a minute's work, on a machine with nothing else to do
@pytest.mark.parametrize(("kinds", "loaded"), [(WITHOUT_TORCH, "[]"), (("gp",), "['torch']")])
def test_torch_is_loaded_when_a_gaussian_process_proposes_and_never_else(
    tmp_path: Path, kinds: tuple[SamplerKind, ...], loaded: str
) -> None:
    words = [sys.executable, "-m", "tests.support.study_proposals", str(tmp_path), *kinds]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == loaded


def test_baselines_that_come_to_one_design_share_it_and_keep_their_names(tmp_path: Path) -> None:
    names = ["interleaved", "top_local", "low_local", "deep", "greedy", "random"]
    _, trials = rounds(tmp_path, document("random", baselines=names, screening={"trials": 8}, **SMALL))
    shared = [trial.baselines for trial in trials if trial.proposed_by == "baseline"]
    assert sorted(name for each in shared for name in each) == sorted(names)
    assert len(shared) < len(names)
    assert [trial.baselines for trial in trials if trial.proposed_by != "baseline"] == [[]] * (
        8 - len(shared)
    )
    assert len({trial.design_key for trial in trials}) == len(trials)

"""Propose a round's designs, read the results of screening, and refit the predictor."""

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from sqlalchemy.orm import Session

from grafting_core.specs.backbone import card_of
from grafting_core.specs.screening import Screened, ScreeningSpec, result_path
from grafting_core.specs.studies.integer_program import Chosen, NoDesign, Proposer
from grafting_core.specs.studies.space import design_key
from grafting_core.specs.studies.study import SamplerKind, StudySpec
from grafting_core.storage.checksums import read_with_digest
from grafting_core.storage.storage import Storage
from service.db.study_tables import StudyRow, TrialRow
from service.domain.studies import spec_of_study
from service.log_once import Once
from service.studies.baselines import baseline_designs
from service.studies.optuna_study import Known, OptunaMirror
from service.studies.predictor import Predictor, Seen, fit, refined_scores
from service.studies.proposing import Proposal, Round
from service.studies.specs import costs_of, screening_work

NEEDS: Mapping[str, tuple[str, ...]] = {"gp": ("torch",)}
"""Sampler -> packages that Optuna imports for its first proposal. An extra of the sampler's name installs
them.
"""
say = Once(logging.getLogger("graftlab.search"))


def known_trials(spec: StudySpec, trials: Sequence[TrialRow]) -> list[Known]:
    """Return the trials for Optuna: the first rung's metric, which all screened ones have, and the costs."""
    first = spec.rungs[0].metric
    return [
        Known(
            number=trial.number,
            assignment=trial.assignment,
            values=(trial.screened[first], *costs_of(spec, trial)) if first in trial.screened else None,
            optuna_number=trial.optuna_number,
        )
        for trial in trials
    ]


def open_book(url: str, study: StudyRow, trials: Sequence[TrialRow]) -> OptunaMirror:
    """Open Optuna's mirror of the study, updated to our tables."""
    spec = spec_of_study(study)
    names = (spec.rungs[0].metric, *spec.costs)
    book = OptunaMirror(url, study.id, spec.space, spec.sampler, names)
    book.reconcile(known_trials(spec, trials))
    return book


def propose(url: str, study: StudyRow, trials: Sequence[TrialRow]) -> list[TrialRow]:
    """Return the trials of the study's current round, not yet stored. Raises ValueError if there can be
    none.
    """
    spec = spec_of_study(study)
    check_installed(spec.sampler.kind)
    scores = learned_scores(spec, study, trials)
    proposer = Proposer(spec.space, scores, spec.limits)
    known = {
        trial.design_key: values for trial, values in zip(trials, known_trials(spec, trials), strict=True)
    }
    baselines: Mapping[str, Chosen] = {}
    if study.round == 1:
        named = baseline_designs(spec, card_of(spec.backbone), study.scores)
        baselines = {str(name): chosen for name, chosen in named.items()}
    book = open_book(url, study, trials)
    try:
        proposals = Round(spec, study.round, proposer, book, known).collect(baselines)
    except NoDesign as error:
        raise ValueError("no design of the distilled operators meets the limits") from error
    return [_trial(study, spec, scores, len(trials) + at, proposal) for at, proposal in enumerate(proposals)]


def check_installed(kind: SamplerKind) -> None:
    """Raises ValueError if this installation lacks packages that a sampler needs."""
    missing = [name for name in NEEDS.get(kind, ()) if find_spec(name) is None]
    if missing:
        problem = f"sampler {kind} needs {', '.join(missing)}, which is not installed"
        raise ValueError(f"{problem}; `pip install 'graftlab[{kind}]'` installs it, or use another sampler")


def _trial(
    study: StudyRow, spec: StudySpec, scores: Mapping[str, float], number: int, proposal: Proposal
) -> TrialRow:
    chosen = proposal.chosen
    return TrialRow(
        study_id=study.id,
        number=number,
        round=study.round,
        proposed_by=proposal.proposed_by,
        baselines=list(proposal.baselines),
        state="PROPOSED",
        assignment=spec.space.assignment(chosen),
        design_key=design_key(spec.space.design(chosen)),
        params=spec.space.params(chosen),
        flops=float(spec.space.flops(chosen)),
        latency=spec.space.latency(chosen) if spec.latencies else None,
        score=sum(scores.get(item.key, 0.0) for item in chosen),
        screened={},
        optuna_number=proposal.optuna_number,
    )


def learned_scores(spec: StudySpec, study: StudyRow, trials: Sequence[TrialRow]) -> dict[str, float]:
    """Return the replace-one scores, refined by the designs screened so far."""
    first = spec.rungs[0].metric
    screened = [
        (spec.space.chosen(trial.assignment), trial.screened[first])
        for trial in trials
        if first in trial.screened
    ]
    return refined_scores(spec.space, study.scores, screened)


def numbers_of(spec: StudySpec, trials: Sequence[TrialRow], storage: Storage) -> dict[int, dict[str, float]]:
    """Return the results in storage by trial and rung, whatever the state of the run that made them."""
    work = screening_work(spec, 1, trials)
    designs = zip(trials, work.designs, strict=True)
    return {trial.number: _numbers(work, at, storage) for at, (trial, _) in enumerate(designs)}


def _numbers(work: ScreeningSpec, at: int, storage: Storage) -> dict[str, float]:
    values: dict[str, float] = {}
    for rung in work.rungs:
        path = result_path(work.result_key(work.designs[at], rung))
        known = read_with_digest(storage, path, Screened)
        if known is None:
            break
        values[rung.metric] = known.value
    return values


def fitted(spec: StudySpec, trials: Sequence[TrialRow]) -> Predictor | None:
    """Fit the predictor of final quality to every finished trial."""
    return fit([Seen(features_of(trial), _final(spec, trial)) for trial in trials])


def features_of(trial: TrialRow) -> dict[str, float]:
    """Return the features of a trial before it is finetuned."""
    return {"score": trial.score, **{name: float(value) for name, value in trial.screened.items()}}


def _final(spec: StudySpec, trial: TrialRow) -> float | None:
    value = (trial.final or {}).get(spec.quality)
    return None if value is None else float(value)


def note_predictions(session: Session, study: StudyRow, trials: Sequence[TrialRow]) -> None:
    """Refit the predictor and store its prediction for every trial."""
    spec = spec_of_study(study)
    predictor = fitted(spec, trials)
    for trial in trials:
        trial.predicted = predictor.predict(features_of(trial)) if predictor else None
    summary = predictor.summary() if predictor else {"trained_on": 0}
    study.findings = {**study.findings, str(study.round): summary}

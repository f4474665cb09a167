"""Proposing in a process of its own where a sampler needs libraries that the scheduler must not load.

Optuna's Gaussian process computes with torch. Its process lives for one round and dies with the scheduler's.
"""

import multiprocessing
import os
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection

from grafting_core.specs.studies.study import SamplerKind
from service.db.study_tables import StudyRow, TrialRow
from service.domain.studies import spec_of_study
from service.studies.trial_round import propose

APART: frozenset[SamplerKind] = frozenset({"gp"})


def proposals(url: str, study: StudyRow, trials: Sequence[TrialRow]) -> list[TrialRow]:
    """`propose`, wherever the study's sampler belongs. Raises ChildProcessError where its process died."""
    if spec_of_study(study).sampler.kind not in APART:
        return propose(url, study, trials)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_propose, args=(theirs, url, study, trials), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError as error:
        raise ChildProcessError(f"the process that proposes for study {study.id} died") from error
    finally:
        ours.close()
        process.join()
    if isinstance(answer, ValueError):
        raise answer
    return list(answer)


def _propose(scheduler: Connection, url: str, study: StudyRow, trials: Sequence[TrialRow]) -> None:
    threading.Thread(target=_end_with, args=(scheduler,), daemon=True).start()
    answer: list[TrialRow] | ValueError
    try:
        answer = propose(url, study, trials)
    except ValueError as error:
        answer = error
    scheduler.send(answer)


def _end_with(scheduler: Connection) -> None:
    """Nothing is ever sent to this end: it can be read when the other has gone."""
    scheduler.poll(None)
    os._exit(1)

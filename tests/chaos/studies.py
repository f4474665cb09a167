"""A study killed in every phase against an undisturbed one: `python -m tests.chaos.studies`.

Two labs with real Ray, one after the other, carry out the same small study. In the second the process that
drives studies is killed whenever the study enters a phase, and as soon as a run of the phase is at work its
workers are: in the first round those that compute, in the second the attempt itself. Exit code 0 when both
studies end with the same trials, numbers and final figures, no purpose had two runs, faults hit all phases
and invariants hold.
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from service.client import ApiProblem, GraftlabClient, LabUnreachable
from service.db.engine import Database
from service.domain.invariants import verify
from service.lab.address import read_address
from service.schemas.studies import StudyDetail, StudyTrial
from service.settings import Settings
from tests.chaos.faults import Target, kill
from tests.chaos.lab import SILENCE_SECONDS, start
from tests.support.builders import study_document

COMPUTING = {"fill": "graft_worker", "screen": "Hybrid", "promote": "graft_worker"}
"""Phase -> a word in the command line of those that compute in it."""
ATTEMPT = "workers.driver"
POLL_SECONDS, PATIENCE_SECONDS = 0.1, 1500.0
STUDY = study_document(
    name="study under fire",
    distill={"steps": 60, "batch_size": 16, "held_out": 16, "images": 200},
    finetune={"steps": 60, "batch_size": 16, "images": 200},
    screening={"trials": 6, "rungs": ["loss_gap", "fid20"], "reduction": 2, "loss_draws": 4096},
    baselines=["random", "teacher"],
    rounds=2,
)


class FaultInjector:
    """Once in every phase of every round the process of the studies, and once those that compute."""

    def __init__(self, folder: Path, client: GraftlabClient) -> None:
        self.target, self.client = Target(folder, random.Random(0), SILENCE_SECONDS), client
        self.killed: dict[tuple[int, str, str], int] = {}

    def at(self, study: StudyDetail) -> None:
        self._once(study, "studies", lambda: kill(self.target.part("studies")))
        if study.phase in COMPUTING and self._at_work(study):
            word = COMPUTING[study.phase] if study.round == 1 else ATTEMPT
            self._once(study, "workers", lambda: kill(self.target.running(word)))

    def _once(self, study: StudyDetail, whom: str, kill_them: Callable[[], int]) -> None:
        key = (study.round, study.phase, whom)
        if key not in self.killed and (met := kill_them()):
            self.killed[key] = met
            print(
                f"{time.strftime('%H:%M:%S')} round {key[0]}, {key[1]}: {whom} killed, {met} met", flush=True
            )

    def _at_work(self, study: StudyDetail) -> bool:
        """A run of this phase has taken its first steps."""
        runs = [run for run in study.runs if run.state == "RUNNING"]
        progress = [self.client.run(run.run_id).progress for run in runs]
        return any(each is not None and 0 < each.step < each.total_steps for each in progress)

    def missed(self) -> Iterator[str]:
        """What was over before it could be killed in the first round."""
        wanted = [(1, phase, "studies") for phase in (*COMPUTING, "learn")]
        wanted += [(1, phase, "workers") for phase in COMPUTING]
        yield from (
            f"not killed: {whom} in phase {phase}" for _, phase, whom in set(wanted) - set(self.killed)
        )


def main() -> int:
    """Both studies, then what differs."""
    calm, *_ = _studied("calm", disturbed=False)
    hard, wrong, injector = _studied("hard", disturbed=True)
    wrong += [*_differences(calm, hard), *injector.missed()]
    killed = sum(injector.killed.values())
    print(f"{len(hard.trial_rows)} trials, {len(hard.runs)} runs, {killed} processes killed")
    print("\n".join([f"{len(wrong)} things wrong", *wrong]))
    return 1 if wrong else 0


def _studied(name: str, disturbed: bool) -> tuple[StudyDetail, list[str], FaultInjector]:
    """The ended study of a lab of its own, and which invariants do not hold there."""
    folder = Path(tempfile.mkdtemp(prefix=f"graftlab-{name}-"))
    lab, began = start(folder, os.cpu_count() or 1), time.monotonic()
    try:
        address = read_address(folder)
        assert address is not None
        client = GraftlabClient(address.url)
        injector = FaultInjector(folder, client)
        study = _followed(client, client.create_study(STUDY).study_id, injector if disturbed else None)
        print(f"{name}: {study.state} in {time.monotonic() - began:.0f} s", flush=True)
        database = Database(Settings(data_dir=folder).database_url)
        with database.reading() as session:
            return study, [str(each) for each in verify(session)], injector
    finally:
        lab.send_signal(signal.SIGINT)
        lab.wait(90)


def _followed(client: GraftlabClient, study: str, injector: FaultInjector | None) -> StudyDetail:
    """To its end, or as far as patience goes."""
    end, detail = time.monotonic() + PATIENCE_SECONDS, client.study(study)
    while detail.state == "RUNNING" and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        try:
            detail = client.study(study)
            if injector is not None and detail.state == "RUNNING":
                injector.at(detail)
        except (LabUnreachable, ApiProblem):
            continue
    return detail


def _differences(calm: StudyDetail, hard: StudyDetail) -> Iterator[str]:
    if (calm.state, hard.state) != ("DONE", "DONE"):
        yield f"the studies are {calm.state} and {hard.state}: {calm.message} {hard.message}"
    ours, theirs = ([_found(detail, at) for at in detail.trial_rows] for detail in (calm, hard))
    yield from (
        f"trial {one} became {other}" for one, other in zip(ours, theirs, strict=False) if one != other
    )
    if len(ours) != len(theirs):
        yield f"{len(ours)} trials became {len(theirs)}"
    purposes = [sorted((run.role, run.label, run.state) for run in detail.runs) for detail in (calm, hard)]
    if purposes[0] != purposes[1]:
        yield f"runs {purposes[0]} became {purposes[1]}"


def _found(detail: StudyDetail, trial: StudyTrial) -> dict[str, object]:
    """What follows from the study alone: measured times do not."""
    final = (trial.final or {}).get(detail.quality)
    return {**trial.model_dump(exclude={"final"}), "final": final}


if __name__ == "__main__":
    sys.exit(main())

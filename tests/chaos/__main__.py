"""Many short runs through real Ray while processes die, freeze and lie: `python -m tests.chaos --seed 1`.

Bounded in time; the seed is printed and decides faults and designs. Exit code 0 when every run has succeeded
with the very weights of an undisturbed one, nothing was charged twice and all invariants hold.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from service.client import ApiProblem, GraftlabClient, LabUnreachable
from service.db.engine import Database
from service.domain.invariants import verify
from service.lab.address import LabAddress, read_address
from service.schemas.runs import TERMINAL, RunDetail
from service.settings import Settings
from tests.chaos.baseline import weights_of
from tests.chaos.faults import Target, inject_fault
from tests.chaos.lab import SILENCE_SECONDS, start
from tests.support.builders import document

COMPARED = 3
"""Designs carried out once more without faults, to compare the weights bit by bit."""


def main() -> int:
    """Start a lab, inject faults, let it drain, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults; as much again to drain")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    print(f"seed {given.seed}: {given.runs} runs, {given.minutes:g} minutes of faults", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="graftlab-chaos-"))
    lab = start(folder, given.cpus)
    try:
        return _run_under_faults(folder, given.minutes, given.runs, random.Random(given.seed))
    finally:
        lab.send_signal(signal.SIGINT)
        lab.wait(90)


def _run_under_faults(folder: Path, minutes: float, count: int, chance: random.Random) -> int:
    address = read_address(folder)
    assert address is not None
    client = GraftlabClient(address.url)
    documents = [_design(index) for index in range(count)]
    submitted = [client.submit(each, f"chaos {index}").run_id for index, each in enumerate(documents)]
    target = Target(folder, chance, SILENCE_SECONDS)
    injected: Counter[str] = Counter()
    end = time.monotonic() + minutes * 60
    while time.monotonic() < end and not _all_ended(client, submitted):
        time.sleep(min(chance.uniform(5, 40), max(0.0, end - time.monotonic())))
        name, met = inject_fault(target)
        injected[name] += bool(met)
        print(f"{time.strftime('%H:%M:%S')} {name}: {met} met", flush=True)
    for process in target.extra:
        process.kill()
    _drain(client, submitted, time.monotonic() + max(5.0, minutes) * 60)
    return _judge(folder, address, client, submitted, injected)


def _design(index: int) -> dict[str, object]:
    """Every run trains something of its own: another seed at another place."""
    return document(
        name=f"chaos {index}",
        layers=[1 + index % 6],
        distill={"steps": 4, "batch_size": 16, "held_out": 16, "images": 100, "seed": index},
        finetune={"steps": 20, "batch_size": 16, "images": 100},
        evaluate={"samples": 20, "sampling_steps": 2, "micro_batch": 10},
    )


def _all_ended(client: GraftlabClient, runs: list[str]) -> bool:
    try:
        return all(client.run(run).state in TERMINAL for run in runs)
    except (LabUnreachable, ApiProblem):
        return False


def _drain(client: GraftlabClient, runs: list[str], end: float) -> None:
    while time.monotonic() < end and not _all_ended(client, runs):
        time.sleep(2)


def _judge(
    folder: Path, address: LabAddress, client: GraftlabClient, runs: list[str], injected: Counter[str]
) -> int:
    details = [client.run(run) for run in runs]
    database = Database(Settings(data_dir=folder).database_url)
    with database.reading() as session:
        violations = verify(session)
    wrong = [*map(str, violations), *_unfinished(details), *_other_weights(folder, details)]
    attempts = sum(detail.attempt for detail in details)
    print(f"faults: {', '.join(f'{name} {count}' for name, count in sorted(injected.items()))}")
    states = Counter(detail.state for detail in details)
    print(f"{len(runs)} runs: {dict(states)}; {attempts} attempts; {len(wrong)} things wrong")
    print("\n".join(wrong))
    return 1 if wrong else 0


def _unfinished(details: list[RunDetail]) -> list[str]:
    return [
        f"run {detail.id} is {detail.state}: {detail.reason} {detail.message}"
        for detail in details
        if detail.state != "SUCCEEDED"
    ]


def _other_weights(folder: Path, details: list[RunDetail]) -> list[str]:
    """The most interrupted runs against undisturbed ones."""
    done = sorted((each for each in details if each.state == "SUCCEEDED"), key=lambda each: -each.attempt)
    wrong = []
    for detail in done[:COMPARED]:
        expected, found = weights_of(folder / "storage", detail.experiment)
        said = "equal" if expected == found else "differ"
        print(f"run {detail.id}: {detail.attempt} attempts, weights {said}")
        if expected != found:
            wrong.append(f"run {detail.id} has other weights than the baseline")
    return wrong


if __name__ == "__main__":
    sys.exit(main())

"""Time from submission to the first training step: a run of the lab compared with a bare `TorchTrainer`.

`python -m benchmarks.startup [--rounds 3] [--workers 1]` starts a lab, and times alternately a script that
connects to its cluster and enters a `TorchTrainer` loop, a run without a warm worker group (cold), and a
run with one (warm). Prints medians and ratios to the script.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.client import GraftlabClient
from service.lab.supervisor import Supervisor
from service.local_keys import first_key
from workers.contract import StageStarted

WARM_SECONDS, GOING_SECONDS = 15.0, 10.0
"""Time for which a group waits for another run here, and time limit for it to end."""
BARE = """
import time
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def loop(config):
    import torch
    weights = torch.nn.Linear(8, 8)
    print("FIRST-STEP", time.time(), flush=True)
    weights(torch.ones(1, 8)).sum().backward()

ray.init(address="auto", log_to_driver=True, logging_level="WARNING")
TorchTrainer(
    loop,
    scaling_config=ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1}),
    run_config=RunConfig(storage_path="STORAGE"),
).fit()
"""


def main() -> int:
    """Time all three alternately and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2), help="of the script and the runs")
    given = parser.parse_args()
    rounds, workers = given.rounds, given.workers
    with tempfile.TemporaryDirectory() as folder, _lab(Path(folder)) as supervisor:
        client = GraftlabClient(supervisor.address.url, key=first_key(supervisor.folder))
        jobs: dict[str, Callable[[int], float]] = {
            "bare TorchTrainer": lambda turn: _bare(supervisor, Path(folder), workers),
            "cold run": lambda turn: _cold(client, turn, workers),
            "warm run": lambda turn: _run(client, 2 * turn + 1, workers),
        }
        times = {name: [job(turn) for turn in range(rounds)] for name, job in _interleaved(jobs, rounds)}
    _print({name: statistics.median(values) for name, values in times.items()})
    return 0


def _interleaved(
    jobs: dict[str, Callable[[int], float]], rounds: int
) -> Iterator[tuple[str, Callable[[int], float]]]:
    """Return jobs whose n-th call is made in the n-th round of all of them."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds):
        for name, job in jobs.items():
            found[name].append(job(turn))
            print(f"round {turn + 1}, {name}: {found[name][-1]:.2f} s", flush=True)
    for name, values in found.items():
        yield name, values.__getitem__


@contextmanager
def _lab(folder: Path) -> Iterator[Supervisor]:
    os.environ["GRAFTLAB_WARM_SECONDS"] = str(WARM_SECONDS)
    supervisor = Supervisor(folder / "lab", 0, 2)
    try:
        supervisor.start()
        supervisor.wait_ready()
        yield supervisor
    finally:
        supervisor.stop()


def _bare(supervisor: Supervisor, folder: Path, workers: int) -> float:
    """Time the script on the whole cluster, after the last group has ended."""
    time.sleep(WARM_SECONDS + GOING_SECONDS)
    environment = supervisor.environment("benchmark")
    environment["RAY_ADDRESS"] = f"{supervisor.host}:{_gcs_port(supervisor)}"
    program = BARE.replace("STORAGE", str(folder / "bare")).replace("WORKERS", str(workers))
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    words = (done.stdout + done.stderr).split("FIRST-STEP", 1)[1].split()
    return float(words[0]) - began


def _gcs_port(supervisor: Supervisor) -> str:
    options = next(part.command for part in supervisor.parts if part.name == "ray")
    return next(word for word in options if word.startswith("--port=")).removeprefix("--port=")


def _cold(client: GraftlabClient, turn: int, workers: int) -> float:
    """Time a run after the last group has ended."""
    time.sleep(WARM_SECONDS + GOING_SECONDS)
    return _run(client, 2 * turn, workers)


def _run(client: GraftlabClient, seed: int, workers: int) -> float:
    """Return the seconds from submission to the start of stage 1, then wait for the rest of the run."""
    document = {
        "name": f"startup {seed}",
        "backbone": "testbed/dit-fashion",
        "edits": [{"replace": "attention", "layers": [1], "with": {"kind": "hyena_x"}}],
        "distill": {"steps": 2, "batch_size": 16, "held_out": 16, "images": 200, "seed": seed},
        "finetune": {"steps": 2, "batch_size": 16, "images": 200},
        "evaluate": {"samples": 20, "sampling_steps": 2, "micro_batch": 10},
        "resources": {"workers": workers},
    }
    began = time.time()
    run_id = client.submit(document).run_id
    run = client.wait(run_id, poll_seconds=0.2)
    assert run.state == "SUCCEEDED", run.message
    bodies = ((event.event.at, event.event.body) for event in client.events(run_id) if event.event)
    return next(at for at, body in bodies if isinstance(body, StageStarted)) - began


def _print(medians: dict[str, float]) -> None:
    base = medians["bare TorchTrainer"]
    print("\n| start | seconds to the first step | ratio |\n|---|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.1f} | {seconds / base:.2f} |")


if __name__ == "__main__":
    sys.exit(main())

"""Operators compared with softmax attention (torch's SDPA) at growing token counts, in one run.

`python -m benchmarks.operators [--width 1152] [--tokens 256 1024 ...] [--rounds 5]` prints a table: median
times of forward and of forward with backward as ratios to `mha` (higher is faster), the ratio of FLOPs,
and the peak of memory beyond weights and input. It uses CUDA with bf16 if available, else the CPU with
float32 (Linux), where peaks are measured in separate processes.
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from grafting_core.operators.table import build_operator
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators import KINDS

PEER = "mha"
RIVALS = (
    "window_attention",
    "window_attention_2d",
    "linear_attention",
    "hyena_x",
    "hyena_se",
    "hyena_y",
    "mamba2",
)
TOKENS_A_BATCH = 4096
COLUMNS = (
    "tokens",
    "operator",
    "forward",
    "forward + backward",
    "by FLOPs",
    "forward ms",
    "peak MiB",
    "peak with backward",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"
Clock = Callable[[], float]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


def main() -> None:
    """Parse the command line, measure, print one line per kind and token count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cpu", action="store_true", help="one thread and its CPU time, for a machine that others use too"
    )
    parser.add_argument("--kinds", nargs="+", default=list(RIVALS))
    parser.add_argument(
        "--peak", action="store_true", help="print the peak of the first kind and token count"
    )
    given = parser.parse_args()
    if given.peak:
        print(*peaks(given.kinds[0], given.width, given.tokens[0]))
        return
    if given.cpu:
        torch.set_num_threads(1)
    clock = time.process_time if given.cpu else time.perf_counter
    print(HEAD)
    for tokens in given.tokens:
        compare(given.width, tokens, given.kinds, given.rounds, clock)


def compare(width: int, tokens: int, kinds: list[str], rounds: int, clock: Clock) -> None:
    """Measure all kinds alternately, round by round, so that a slow moment of the machine affects them
    alike.
    """
    modules = {kind: operator(kind, width, tokens) for kind in (PEER, *kinds)}
    hidden = batch(width, tokens)
    forward = interleaved({kind: _forward(module, hidden) for kind, module in modules.items()}, rounds, clock)
    both = interleaved(
        {kind: _backward(module, hidden) for kind, module in modules.items()}, max(1, rounds // 2), clock
    )
    for kind in modules:
        by_flops = total_flops(PEER, width, tokens) / total_flops(kind, width, tokens)
        ratios = [forward[PEER] / forward[kind], both[PEER] / both[kind], by_flops]
        cells = [tokens, kind, *(f"{ratio:.2f}" for ratio in ratios), f"{1e3 * forward[kind]:.0f}"]
        line = " | ".join(map(str, [*cells, *peaks_of(kind, width, tokens)]))
        print(f"| {line} |", flush=True)


def dims_of(width: int, tokens: int) -> BlockDims:
    """Return dims of a square grid, or of one twice as wide as high."""
    side = 2 ** (round(math.log2(tokens)) // 2)
    return BlockDims(width=width, num_heads=16, mlp_ratio=4.0, grid=(side, tokens // side))


def total_flops(kind: str, width: int, tokens: int) -> int:
    return KINDS[kind](kind=kind).computed_flops(dims_of(width, tokens))


def operator(kind: str, width: int, tokens: int) -> nn.Module:
    return build_operator(KINDS[kind](kind=kind), dims_of(width, tokens)).to(DEVICE, DTYPE)


def batch(width: int, tokens: int) -> Tensor:
    """Return a batch [B, tokens, width] with a constant number of tokens in total."""
    return torch.randn(max(1, TOKENS_A_BATCH // tokens), tokens, width, device=DEVICE, dtype=DTYPE)


def peaks_of(kind: str, width: int, tokens: int) -> list[str]:
    """Run `peaks` in a process that does nothing else."""
    words = ["--peak", "--kinds", kind, "--width", str(width), "--tokens", str(tokens)]
    command = [sys.executable, "-m", "benchmarks.operators", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def peaks(kind: str, width: int, tokens: int) -> tuple[int, int]:
    """Return the MiB of a forward, and of a forward with backward, beyond weights, input and loaded
    libraries.
    """
    module, hidden = operator(kind, width, tokens), batch(width, tokens)
    _backward(operator(PEER, width, 64), hidden[:1, :64])()
    return _peak(_forward(module, hidden)), _peak(_backward(module, hidden))


def _peak(job: Callable[[], None]) -> int:
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return int(torch.cuda.max_memory_allocated() - before) // 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the recorded peak
    before = _resident("VmRSS")
    job()
    return (_resident("VmHWM") - before) // 1024


def _resident(name: str) -> int:
    """Return a memory figure of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def interleaved(jobs: dict[str, Callable[[], None]], rounds: int, clock: Clock) -> dict[str, float]:
    """Return the median seconds of every job after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            began = clock()
            job()
            _wait()
            if turn:
                times[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forward(module: nn.Module, hidden: Tensor) -> Callable[[], None]:
    def job() -> None:
        with torch.no_grad():
            module(hidden)

    return job


def _backward(module: nn.Module, hidden: Tensor) -> Callable[[], None]:
    def job() -> None:
        module.zero_grad()
        module(hidden).sum().backward()

    return job


if __name__ == "__main__":
    sys.exit(main())

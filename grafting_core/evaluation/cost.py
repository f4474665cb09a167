"""Cost of a network: parameters, latency of forwards relative to its teacher, images per second, memory.

Every measurement is interleaved with the teacher's, so that a slow moment of the machine affects both, and
is stored with the hardware that it was made on.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from grafting_core.backbones.base import Backbone
from grafting_core.diffusion.precision import autocast
from grafting_core.diffusion.sampling import sample_images
from grafting_core.specs.plans import EvaluationProtocol, Precision
from grafting_core.specs.results import Hardware, Latency, MeasuredCost, Parameters

PAIRS, FEWEST_PAIRS, WARM_UPS, RESAMPLES = 30, 10, 3, 2_000
SECONDS = 2.0
"""Duration of one comparison; after it only the minimum number of pairs is completed."""
EMBEDDERS = ("norm1.emb", "x_embedder", "t_embedder", "y_embedder")
Job = Callable[[], object]
Floats = npt.NDArray[np.float64]
# Otherwise the profiler prints to standard error when it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def measure_cost(
    backbone: Backbone,
    network: nn.Module,
    grafted_params: int,
    protocol: EvaluationProtocol,
    flops_per_forward: int,
    flops_per_image: int,
) -> MeasuredCost:
    """Measure a network in evaluation mode: about 200 forwards, and sampling of a micro-batch."""
    batches = (1, protocol.micro_batch)
    ours, theirs = (
        [forward_job(backbone, model, size, protocol.precision) for size in batches]
        for model in (network, backbone.transformer)
    )
    cold = time_call(ours[-1], backbone.device)
    latencies = [
        paired_latency(job, teacher, backbone.device, size)
        for job, teacher, size in zip(ours, theirs, batches, strict=True)
    ]
    rates = sampling_rates(backbone, network, protocol)
    return MeasuredCost(
        hardware=hardware_of(backbone.device, protocol.precision),
        parameters=count_parameters(network, grafted_params),
        flops_per_forward=flops_per_forward,
        flops_per_image=flops_per_image,
        latencies=tuple(latencies),
        cold_start_seconds=cold,
        images_per_second=rates[0],
        teacher_images_per_second=rates[1],
        peak_bytes=peak_bytes(ours[-1], backbone.device),
    )


def hardware_of(device: torch.device, precision: Precision = "float32") -> Hardware:
    """Hardware fingerprint of this machine, for this device and precision."""
    cuda = device.type == "cuda"
    return Hardware(
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gib=round(psutil.virtual_memory().total / 2**30),
        torch=torch.__version__,
        driver=torch.version.cuda if cuda else None,
        dtype=precision,
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def count_parameters(network: nn.Module, grafted: int) -> Parameters:
    """Parameter counts; shared tensors count once. Stage 2 trains all parameters."""
    named = dict(network.named_parameters())
    embedders = {id(t): t for name, t in named.items() if any(part in name for part in EMBEDDERS)}
    total = sum(tensor.numel() for tensor in named.values())
    return Parameters(
        total=total,
        trainable=total,
        grafted=grafted,
        embedding=sum(tensor.numel() for tensor in embedders.values()),
        buffers=sum(tensor.numel() for tensor in network.buffers()),
    )


def forward_job(backbone: Backbone, network: nn.Module, batch: int, precision: Precision = "float32") -> Job:
    """One forward as in sampling, on fixed inputs that are already on the device."""
    generator = torch.Generator().manual_seed(0)
    latents: Tensor = torch.randn((batch, *backbone.latent_shape), generator=generator)
    latents = latents.to(backbone.device)
    labels = torch.arange(batch) % max(1, backbone.card.num_classes)
    conditions = backbone.label_conditions(labels).to(backbone.device)
    forward = backbone.with_transformer(network).sampling_forward()

    def job() -> object:
        with torch.inference_mode(), autocast(backbone.device, precision):
            return forward(latents, 500, conditions)

    return job


def time_call(job: Job, device: torch.device) -> float:
    """Wall-clock seconds of one call, with the device's queue empty before and after."""
    synchronize(device)
    began = time.perf_counter()
    job()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paired_latency(
    job: Job, teacher: Job, device: torch.device, batch: int, seconds: float = SECONDS, most: int = PAIRS
) -> Latency:
    """Latency in pairs after a warm-up; the ratio is the median over pairs, with a bootstrap interval."""
    ours, theirs = interleaved([job, teacher], device, seconds, most).T
    pairs, ratios = len(ours), np.log(ours / theirs)
    low, high = np.exp(median_interval(ratios))
    fast, slow = np.quantile(ours, [0.2, 0.8])
    return Latency(
        batch=batch,
        pairs=pairs,
        median=float(np.median(ours)),
        low=float(fast),
        high=float(slow),
        teacher_median=float(np.median(theirs)),
        ratio=float(np.exp(np.median(ratios))),
        ratio_low=float(low),
        ratio_high=float(high),
    )


def median_interval(values: Floats) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap over the values."""
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975])
    return float(low), float(high)


def interleaved(
    jobs: Sequence[Job],
    device: torch.device,
    seconds: float = SECONDS,
    most: int = PAIRS,
    enough: Callable[[Floats], bool] = lambda times: False,
) -> Floats:
    """Seconds of every job by round [rounds, jobs], after a warm-up.

    Each round starts with the next job, because a job's caches depend on its predecessor. After the minimum
    number of rounds, `enough` may end the measurement.
    """
    for _ in range(WARM_UPS):
        for job in jobs:
            job()
    rounds, end = list[list[float]](), time.perf_counter() + seconds
    while len(rounds) < FEWEST_PAIRS or (
        len(rounds) < most and time.perf_counter() < end and not enough(np.array(rounds))
    ):
        times = [0.0] * len(jobs)
        for turn in range(len(jobs)):
            at = (len(rounds) + turn) % len(jobs)
            times[at] = time_call(jobs[at], device)
        rounds.append(times)
    return np.array(rounds)


def sampling_rates(
    backbone: Backbone, network: nn.Module, protocol: EvaluationProtocol
) -> tuple[float, float]:
    """Images per second of network and teacher: medians of interleaved sampling of a micro-batch."""
    networks, end = (network, backbone.transformer), time.perf_counter() + SECONDS
    times: tuple[list[float], list[float]] = ([], [])
    while not times[0] or (len(times[0]) < PAIRS and time.perf_counter() < end):
        for durations, model in zip(times, networks, strict=True):
            durations.append(time_call(_sampling(backbone, model, protocol), backbone.device))
    ours, theirs = (protocol.micro_batch / statistics.median(durations) for durations in times)
    return ours, theirs


def _sampling(backbone: Backbone, network: nn.Module, protocol: EvaluationProtocol) -> Job:
    return lambda: sample_images(backbone, network, protocol, range(protocol.micro_batch))


def peak_bytes(job: Job, device: torch.device) -> int:
    """Peak memory that one call allocates, beyond what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        job()
    steps = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(steps, key=lambda event: event.start_ns())]
    return int(max(np.cumsum(sizes), default=0))

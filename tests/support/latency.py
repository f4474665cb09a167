"""Latency rows and measured costs of a simulated device."""

from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.latency import LatencySpec, PartLatency, Seconds, TimedPart
from grafting_core.specs.results import Hardware, Latency, MeasuredCost, Parameters

SIMULATED = Hardware(device="cpu", processor="simulated", cores=1, threads=1, memory_gib=1, torch="0")
FORWARD_SECONDS = 0.1


def timed_row(work: LatencySpec, part: TimedPart, extra: float, run: str = "run") -> PartLatency:
    """Make a row of the latency table: every operator takes 5 ms and adds `extra` to a forward."""
    taken = 0.005 + extra * FORWARD_SECONDS
    return PartLatency(
        key=work.row_key(part, SIMULATED),
        part=part,
        tokens=49,
        width=96,
        batch=work.batch,
        precision=work.precision,
        hardware=SIMULATED,
        rounds=30,
        seconds=Seconds(median=taken, low=0.9 * taken, high=1.1 * taken),
        original=Seconds(median=0.005, low=0.004, high=0.006),
        whole=Seconds(median=FORWARD_SECONDS, low=FORWARD_SECONDS, high=FORWARD_SECONDS),
        extra=extra,
        extra_low=extra - 0.001,
        extra_high=extra + 0.001,
        made_by=run,
    )


def clocked_cost(work: ExperimentSpec, ratio: float) -> MeasuredCost:
    """Make the measured cost of a network whose forward takes `ratio` times the backbone's."""
    latency = Latency(
        batch=work.evaluate.micro_batch,
        pairs=30,
        median=ratio * FORWARD_SECONDS,
        low=ratio * FORWARD_SECONDS,
        high=ratio * FORWARD_SECONDS,
        teacher_median=FORWARD_SECONDS,
        ratio=ratio,
        ratio_low=ratio - 0.01,
        ratio_high=ratio + 0.01,
    )
    return MeasuredCost(
        hardware=SIMULATED,
        parameters=Parameters(total=1, trainable=1, grafted=0, embedding=0, buffers=0),
        flops_per_forward=1,
        flops_per_image=1,
        latencies=(latency,),
        cold_start_seconds=0.1,
        images_per_second=10.0,
        teacher_images_per_second=10.0,
        peak_bytes=1,
    )

"""Responses of `/measured` and `/latencies`: rank correlation of fidelity rungs, latency by hardware."""

from grafting_core.specs.latency import PartLatency
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.results import Hardware
from grafting_core.specs.studies.rank_correlation import RungAgreement
from service.schemas.names import BackboneName, Shown
from service.schemas.runs import View


class LadderGroup(View):
    """Rank correlations over models that were evaluated alike except for the number of samples."""

    backbone: BackboneName
    protocol: Shown[EvaluationProtocol]
    """Protocol of the evaluation with the most samples."""
    models: int
    agreements: list[Shown[RungAgreement]]


class LatencyRow(View):
    """Latency of one network's forward and sampling; `ratio` is relative to its teacher's interleaved
    forwards.
    """

    rank: int
    run_id: str
    name: str
    milliseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    verdict: str
    images_per_second: float
    peak_bytes: int


class LatencyGroup(View):
    """Rows of one hardware fingerprint, fastest first; groups are never ranked together."""

    backbone: BackboneName
    hardware: Hardware
    hardware_digest: str
    batch: int
    rows: list[LatencyRow]


class LatencyTable(View):
    """Seconds of operators in their place, by device, sizes and precision."""

    rows: list[PartLatency]


class Measurements(View):
    """Measurements of the lab's finished runs."""

    ladders: list[LadderGroup]
    latencies: list[LatencyGroup]

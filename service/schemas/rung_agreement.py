"""What is known of measuring itself: do cheap rungs rank like dear ones, and what costs what by the clock."""

from grafting_core.specs.latency import PartLatency
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.results import Hardware
from grafting_core.specs.studies.rank_correlation import RungAgreement
from service.schemas.runs import View


class LadderGroup(View):
    """Rank correlations over the models that were judged alike but for the number of samples."""

    backbone: str
    protocol: EvaluationProtocol
    """Of the dearest evaluation among them."""
    models: int
    agreements: list[RungAgreement]


class LatencyRow(View):
    """One network's forward and sampling; `ratio` to its teacher's forward in the same minutes."""

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

    backbone: str
    hardware: Hardware
    hardware_digest: str
    batch: int
    rows: list[LatencyRow]


class LatencyTable(View):
    """Seconds of operators in their place, by device, sizes and precision."""

    rows: list[PartLatency]


class Measurements(View):
    """Of the lab's finished runs."""

    ladders: list[LadderGroup]
    latencies: list[LatencyGroup]

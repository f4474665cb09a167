"""Responses of the leaderboard."""

from datetime import datetime

from grafting_core.specs.budget import Usage
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.results import ProtocolFingerprint
from service.schemas.names import BackboneName, MetricName, Metrics, Shown
from service.schemas.runs import View
from workers.contract import Reason


class FirstMade(View):
    """First maker of a design; `another's` if the reader does not see that run."""

    run_id: str
    owner: str
    at: datetime | None = None
    visible: bool = True
    """Whether the reader sees that run."""


class LeaderboardRow(View):
    """One finished run; changes are relative to the teacher under the same protocol (0.1 is +10 %)."""

    rank: int
    rank_from: int
    rank_to: int
    """First and last rank, in this answer, of runs that do not differ significantly from this one."""
    run_id: str
    name: str
    is_teacher: bool
    metric: MetricName
    value: float
    interval: tuple[float, float] | None = None
    """95 % interval of the values of other draws of as many samples."""
    value_change: float | None
    num_params: int
    params_change: float | None
    flops_per_image: int
    flops_change: float | None
    made: Usage | None = None
    """Cost of making the design, with reused artifacts at their full price; None if unknown.

    It is the first run's: submitting a finished design again does not change it.
    """
    spend: Usage
    """Use that this run paid for."""
    saved: Usage | None = None
    """Cost avoided by reuse: `made` minus `spend`."""
    first: FirstMade | None = None
    share_of_pretraining: float | None
    """Share of pretraining of `made`."""

    @property
    def tied(self) -> bool:
        return self.rank_from != self.rank_to

    @property
    def ranks(self) -> str:
        """Rank as text: `3`, or `3-4` if two rows are tied."""
        return f"{self.rank_from}-{self.rank_to}" if self.tied else str(self.rank)


class Oracle(View):
    """Metric of held-out real images of the data set, what a perfect model of it would reach."""

    metric: MetricName
    """Contains the number of images; it is comparable with the group's metric if both are equal."""
    value: float
    interval: tuple[float, float] | None = None
    images: int


class LeaderboardGroup(View):
    """Rows evaluated under the same protocol; groups are never ranked together."""

    backbone: BackboneName
    licence: str | None = None
    """Of the backbone, as its publisher names it; None: not known."""
    protocol_digest: str
    protocol: Shown[EvaluationProtocol]
    fingerprint: Shown[ProtocolFingerprint] | None = None
    """Content of the digest: network and reference by digest, version of the arithmetic."""
    metric: MetricName
    total: int
    """Number of all ranked runs; `rows` are the first of them, or those after the cursor."""
    rows: list[LeaderboardRow]
    next_cursor: str | None = None
    oracle: Oracle | None = None
    """None if the data set has no held-out images, or no run has computed it."""


class CutShort(View):
    """A run that ended early on its budget or a divergence, with its partial results."""

    run_id: str
    name: str
    protocol_digest: str
    reason: Reason
    reached: str
    rungs: Metrics
    """Metrics of the fidelity ladder that it had when it ended."""
    spend: Usage


class Leaderboard(View):
    groups: list[LeaderboardGroup]
    other_protocols: list[str] = []
    """Digests of smaller groups that this answer leaves out; request each as `protocol`."""
    cut_short: list[CutShort] = []

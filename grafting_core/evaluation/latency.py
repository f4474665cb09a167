"""Measure rows of the latency table on whole forwards, interleaved with the backbone's own."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from grafting_core.backbones.base import Backbone
from grafting_core.evaluation.cost import (
    Floats,
    Job,
    forward_job,
    hardware_of,
    interleaved,
    median_interval,
    paired_latency,
)
from grafting_core.specs.design import GraftDesign, ParallelPair, ReplaceOperator
from grafting_core.specs.dims import SLOTS, Slot
from grafting_core.specs.latency import MOST_ROUNDS, LatencySpec, PartLatency, Seconds, TimedPart
from grafting_core.specs.operators import KINDS, OperatorBase
from grafting_core.specs.results import Latency
from grafting_core.specs.site import GraftSite
from grafting_core.surgery.operate import operate

ROW_SECONDS = 20.0
"""Duration of one row's rounds; after it only the minimum number of rounds is completed."""
NARROW = 0.02
"""Rounds of a row end once the interval of the ratio to the backbone's forward is narrower than this."""


class LatencyBench:
    """Measures operators in a backbone. Rows can be measured in any order."""

    def __init__(self, backbone: Backbone, spec: LatencySpec) -> None:
        self._backbone, self._spec = backbone, spec
        self._bare: dict[tuple[Slot, ...], Job] = {}

    def key(self, part: TimedPart) -> str:
        """Key of the row of this part on this machine."""
        hardware = hardware_of(self._backbone.device, self._spec.precision)
        return self._spec.row_key(part, hardware)

    def measure(self, part: TimedPart, seconds: float = ROW_SECONDS) -> PartLatency:
        """Measure one row. Raises ValueError for an operator that does not fit the backbone's sizes."""
        jobs = [self._candidate(part), self._whole(), self._without(part)]
        times = interleaved(jobs, self._backbone.device, seconds, MOST_ROUNDS, _is_narrow)
        return self._row(part, times)

    def compare(self, design: GraftDesign, seconds: float = ROW_SECONDS) -> Latency:
        """Latency of a whole design, untrained, interleaved with the backbone."""
        job = self._copy(design)
        spec, device = self._spec, self._backbone.device
        return paired_latency(job, self._whole(), device, spec.batch, seconds, MOST_ROUNDS)

    def _row(self, part: TimedPart, times: Floats) -> PartLatency:
        """Row from `times` [rounds, 3]: candidate, backbone, and backbone without the replaced part."""
        card, count = self._backbone.card, part.sites(self._backbone.card)
        candidate, whole, bare = times.T
        extra = (candidate / whole - 1) / count
        low, high = median_interval(extra)
        return PartLatency(
            key=self.key(part),
            part=part,
            tokens=card.dims.num_tokens,
            width=card.dims.width,
            batch=self._spec.batch,
            precision=self._spec.precision,
            hardware=hardware_of(self._backbone.device, self._spec.precision),
            rounds=len(times),
            seconds=_seconds((candidate - bare) / count),
            original=_seconds((whole - bare) / count),
            whole=_seconds(whole),
            extra=float(np.median(extra)),
            extra_low=low,
            extra_high=high,
        )

    def _whole(self) -> Job:
        return self._job(self._backbone.transformer)

    def _candidate(self, part: TimedPart) -> Job:
        card = self._backbone.card
        if part.place == "rest":
            return self._emptied(SLOTS)
        if part.place == "pairs":
            return self._edited(pairs=card.free_pairs)
        assert part.operator is not None
        own = {card.original(site) == part.operator for site in card.sites if site.slot == part.place}
        if own == {True}:
            return self._whole()
        return self._edited({part.place: part.operator})

    def _without(self, part: TimedPart) -> Job:
        """Baseline from which a row's seconds are counted."""
        if part.place == "rest":
            return lambda: None
        return self._whole() if part.place == "pairs" else self._emptied((part.place,))

    def _emptied(self, slots: Sequence[Slot]) -> Job:
        """The backbone with identity operators in these slots, built once."""
        key = tuple(slots)
        if key not in self._bare:
            self._bare[key] = self._edited({slot: KINDS["identity"](kind="identity") for slot in key})
        return self._bare[key]

    def _edited(
        self, operators: Mapping[Slot, OperatorBase] | None = None, pairs: Sequence[ParallelPair] = ()
    ) -> Job:
        """The backbone with these operators in every block."""
        edits = [
            ReplaceOperator(site=GraftSite(block=block, slot=slot), operator=operator)
            for block in range(self._backbone.card.depth)
            for slot, operator in (operators or {}).items()
        ]
        return self._copy(GraftDesign.of(self._backbone.card.ref, [*edits, *pairs]))

    def _copy(self, design: GraftDesign) -> Job:
        """A copy that shares the backbone's weights; new operators are untrained."""
        original = self._backbone.transformer
        shared = {id(tensor): tensor for tensor in (*original.parameters(), *original.buffers())}
        network = copy.deepcopy(original, shared)
        operate(self._backbone.with_transformer(network), design)
        return self._job(network.requires_grad_(False).eval())

    def _job(self, network: nn.Module) -> Job:
        return forward_job(self._backbone, network, self._spec.batch, self._spec.precision)


def _is_narrow(times: Floats) -> bool:
    """Whether the ratio of the first job to the second is known precisely enough."""
    low, high = median_interval(times[:, 0] / times[:, 1])
    return high - low < NARROW


def _seconds(values: Floats) -> Seconds:
    low, median, high = np.quantile(values, [0.2, 0.5, 0.8])
    return Seconds(median=float(median), low=float(low), high=float(high))

"""Attention locality: band-k locality of every block (paper section 3.4, Eq. 3).

L_k is the mean attention mass within k tokens in raster order: 1 if k reaches every token. It is averaged
over heads, samples, both forwards of guidance and all sampling steps; the paper does not mention heads.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.capture import capture_operators
from grafting_core.diffusion.sampling import sample_latents
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.site import GraftSite
from grafting_core.training.observer import Checkpointer, NoCheckpoints, NullObserver, Observer, StopRequested

MICRO_BATCH = 50


def profile_protocol(samples: int = 250, sampling_steps: int = 50, seed: int = 0) -> EvaluationProtocol:
    """The paper's setting (facts 3.1): DDIM with guidance 1.5. The micro-batch divides the samples."""
    batch = next(size for size in range(min(samples, MICRO_BATCH), 0, -1) if samples % size == 0)
    return EvaluationProtocol(
        samples=max(2, samples),
        sampler="ddim",
        sampling_steps=sampling_steps,
        guidance=1.5,
        micro_batch=batch,
        seed=seed,
    )


def band_mass(attention_BHTT: Tensor, bands: Sequence[int]) -> Tensor:
    """L_k for every k of `bands`, of attention rows that sum to one: [len(bands)], float64."""
    tokens = attention_BHTT.shape[-1]
    places = torch.arange(tokens, device=attention_BHTT.device)
    distance_TT = (places[:, None] - places).abs()
    mean_TT = attention_BHTT.double().mean(dim=(0, 1))
    return torch.stack([mean_TT[distance_TT <= band].sum() / tokens for band in bands])


def locality_profile(
    backbone: Backbone,
    bands: Sequence[int],
    protocol: EvaluationProtocol,
    *,
    samples: int | None = None,
    observer: Observer | None = None,
    checkpoints: Checkpointer | None = None,
) -> dict[int, list[float]]:
    """L_k of every block for every k, measured while sampling with `protocol`.

    Raises StopRequested, after a checkpoint, if the observer requests a stop.
    """
    total, reporter, checkpointer = (
        samples or protocol.samples,
        observer or NullObserver(),
        checkpoints or NoCheckpoints(),
    )
    gauges = _gauges(backbone, bands)
    first = _resume(gauges, checkpointer)
    reporter.progress(first, total, {})
    while first < total:
        indices = range(first, min(first + protocol.micro_batch, total))
        with capture_operators(backbone, gauges):
            sample_latents(backbone, backbone.transformer, protocol, indices)
        first = indices.stop
        reporter.progress(first, total, {})
        _pause(gauges, first, total, reporter, checkpointer)
    means = [gauge.mean.tolist() for gauge in gauges.values()]
    return {band: [mean[index] for mean in means] for index, band in enumerate(bands)}


class _Gauge:
    """Averages one block's locality over forwards."""

    def __init__(self, parts: Mapping[str, nn.Linear], num_heads: int, bands: Sequence[int]) -> None:
        self._parts, self._heads, self._bands = parts, num_heads, bands
        self.sums = torch.zeros(len(bands) + 1, dtype=torch.float64)
        """Sum of mass by band, and the number of forwards."""

    @property
    def mean(self) -> Tensor:
        return self.sums[:-1] / self.sums[-1]

    def __call__(self, hidden_BTD: Tensor, output_BTD: Tensor) -> None:
        q_BHTE, k_BHTE = (
            self._parts[name](hidden_BTD).unflatten(2, (self._heads, -1)).transpose(1, 2) for name in "qk"
        )
        attention_BHTT = (q_BHTE @ k_BHTE.mT / q_BHTE.shape[3] ** 0.5).softmax(dim=3)
        self.sums[:-1] += band_mass(attention_BHTT, self._bands).cpu()
        self.sums[-1] += 1


def _gauges(backbone: Backbone, bands: Sequence[int]) -> dict[GraftSite, _Gauge]:
    sites = [GraftSite(block=block, slot="attention") for block in range(backbone.card.depth)]
    gauges = dict[GraftSite, _Gauge]()
    for site in sites:
        parts = backbone.family.projections(backbone.get_operator(site))
        gauges[site] = _Gauge(parts, backbone.sites[site].num_heads, bands)
    return gauges


def _resume(gauges: Mapping[GraftSite, _Gauge], checkpoints: Checkpointer) -> int:
    found = checkpoints.latest()
    if found is None:
        return 0
    for site, gauge in gauges.items():
        gauge.sums = found[1][str(site)].clone()
    return found[0]


def _pause(
    gauges: Mapping[GraftSite, _Gauge], first: int, total: int, observer: Observer, checkpoints: Checkpointer
) -> None:
    stopping = first < total and observer.stop_requested()
    if stopping or checkpoints.due():
        checkpoints.save(first, {str(site): gauge.sums for site, gauge in gauges.items()})
    if stopping:
        raise StopRequested

"""Measure a backbone's profile."""

from dataclasses import asdict

from grafting_core.analysis.locality import locality_profile, profile_protocol
from grafting_core.analysis.statistics import activation_statistics
from grafting_core.backbones.base import Backbone
from grafting_core.data.latents import Latents
from grafting_core.specs.analysis import AnalysisSpec
from grafting_core.specs.profile import BackboneProfile, BandLocality, SiteStatistics, uniform_share
from grafting_core.training.observer import Checkpointer, Observer

STATISTICS_IMAGES = 256


def measure_profile(
    backbone: Backbone,
    spec: AnalysisSpec,
    latents: Latents,
    *,
    observer: Observer,
    checkpoints: Checkpointer,
) -> BackboneProfile:
    """Locality while sampling, then statistics on noised latents. Raises StopRequested at a stop request."""
    masses = locality_profile(
        backbone,
        spec.bands,
        profile_protocol(spec.samples, spec.sampling_steps, spec.seed),
        samples=spec.samples,
        observer=observer,
        checkpoints=checkpoints,
    )
    statistics = activation_statistics(backbone, latents, STATISTICS_IMAGES, spec.seed)
    tokens = backbone.card.dims.num_tokens
    return BackboneProfile(
        backbone=backbone.card.ref,
        samples=spec.samples,
        sampling_steps=spec.sampling_steps,
        seed=spec.seed,
        locality=tuple(
            BandLocality(
                band=band, uniform=uniform_share(band, tokens), blocks=tuple(min(1.0, m) for m in mass)
            )
            for band, mass in masses.items()
        ),
        statistics=tuple(SiteStatistics(site=site, **asdict(values)) for site, values in statistics.items()),
    )

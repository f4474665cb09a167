"""Locality and activation statistics against their definitions."""

import pytest
import torch
from scipy import stats

from grafting_core.analysis.locality import band_mass, locality_profile, profile_protocol
from grafting_core.analysis.statistics import OUTLIER_DEVIATIONS, activation_statistics
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.capture import capture_operators
from grafting_core.data.latents import Latents
from grafting_core.diffusion.schedule import add_noise, linear_schedule
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.profile import uniform_share
from grafting_core.specs.site import GraftSite
from grafting_core.training.observer import StopRequested
from tests.support.training import MemoryCheckpoints, StopAfter


def test_uniform_attention_has_the_share_of_the_band() -> None:
    uniform = torch.full((1, 1, 256, 256), 1 / 256)
    assert band_mass(uniform, [32]).item() == pytest.approx((65 * 256 - 32 * 33) / 256**2)
    masses = band_mass(uniform, range(300)).tolist()
    assert masses == pytest.approx([uniform_share(band, 256) for band in range(300)])


def test_a_band_over_everything_holds_all_mass() -> None:
    attention = torch.randn(2, 3, 40, 40).softmax(dim=3)
    assert band_mass(attention, [39, 100]).tolist() == pytest.approx([1, 1])


def test_the_mass_is_that_of_the_definition() -> None:
    attention = torch.randn(2, 3, 20, 20, dtype=torch.float64).softmax(dim=3)
    inside = sum(attention[..., i, j].sum() for i in range(20) for j in range(20) if abs(i - j) <= 4)
    assert band_mass(attention, [4]).item() == pytest.approx(inside.item() / (2 * 3 * 20))


def test_a_profile_has_a_growing_mass_for_every_block(backbone: Backbone) -> None:
    protocol = EvaluationProtocol(samples=4, sampler="ddim", sampling_steps=2, guidance=1.5, micro_batch=4)
    profile = locality_profile(backbone, [1, 6, 48], protocol)
    assert all(len(values) == backbone.card.depth for values in profile.values())
    assert all(one < six < 1 for one, six in zip(profile[1], profile[6], strict=True))
    assert profile[48] == pytest.approx([1.0] * backbone.card.depth)


def test_an_interrupted_profile_goes_on_to_the_same_bits(backbone: Backbone) -> None:
    protocol = profile_protocol(samples=6, sampling_steps=2).model_copy(update={"micro_batch": 2})
    whole = locality_profile(backbone, [6], protocol)
    kept = MemoryCheckpoints()
    with pytest.raises(StopRequested):
        locality_profile(backbone, [6], protocol, observer=StopAfter(4), checkpoints=kept)
    assert list(kept.kept) == [4]
    assert locality_profile(backbone, [6], protocol, checkpoints=kept) == whole


@pytest.mark.parametrize("samples", [1, 7, 250, 251])
def test_micro_batches_never_count_a_sample_twice(samples: int) -> None:
    assert samples % profile_protocol(samples).micro_batch == 0


def test_the_gauge_sees_the_attention_that_the_block_computes(backbone: Backbone) -> None:
    """Values weighted by the recomputed attention give the block's own output."""
    site = GraftSite(block=2, slot="attention")
    attention, seen = backbone.get_operator(site), []
    with capture_operators(backbone, {site: lambda *both: seen.append(both)}), torch.no_grad():
        latents = torch.randn(1, 4, 7, 7)
        backbone.transformer(latents, timestep=torch.tensor([400]), class_labels=torch.tensor([3]))
        ((hidden, output),) = seen
        parts = [attention.get_submodule(name)(hidden).view(1, 49, 6, 16).transpose(1, 2) for name in ("to_q", "to_k", "to_v")]  # fmt: skip  # noqa: E501
        weights = (parts[0] @ parts[1].mT / 4).softmax(dim=3)
        mixed = attention.get_submodule("to_out.0")((weights @ parts[2]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, output, rtol=0, atol=1e-5)


def test_statistics_are_those_of_all_values_at_once(backbone: Backbone, latents: Latents) -> None:
    found = activation_statistics(backbone, latents, num_samples=70)
    site, kept = GraftSite(block=7, slot="mlp"), []
    for index, size in enumerate((64, 6)):
        batch = latents.batch("statistics", 0, index, size)
        noisy = add_noise(linear_schedule(), batch.clean, batch.noise, batch.timesteps)
        with capture_operators(backbone, {site: lambda _, out: kept.append(out.double())}), torch.no_grad():
            backbone.transformer(noisy, timestep=batch.timesteps, **batch.conditions.arguments)
    values = torch.cat(kept).flatten().numpy()
    assert found[site].variance == pytest.approx(values.var())
    assert found[site].kurtosis == pytest.approx(stats.kurtosis(values, fisher=False))
    assert found[site].maximum == pytest.approx(abs(values).max())
    far = abs(values - values.mean()) > OUTLIER_DEVIATIONS * values.std()
    assert found[site].outlier_share == pytest.approx(far.mean())
    assert set(found) == set(backbone.card.sites)

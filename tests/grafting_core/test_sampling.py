"""The same samples, whoever draws them, in whatever company."""

from typing import Any

import pytest
import torch

from grafting_core.backbones.base import Backbone
from grafting_core.diffusion.sampling import sample_generators, sample_images, sample_labels, sample_latents
from grafting_core.diffusion.schedule import linear_schedule
from grafting_core.evaluation.evaluate import (
    EvaluatedChunk,
    compute_report,
    evaluate_chunk,
    feature_network_for,
    fid_at,
    training_reference,
)
from grafting_core.specs.experiment import own_fingerprint
from grafting_core.specs.noise import TrainingSchedule, noise_levels
from grafting_core.specs.plans import EvaluationProtocol, Spacing
from grafting_core.specs.sampling_steps import forwards_per_image

PROTOCOL = EvaluationProtocol(
    samples=30,
    sampler="ddpm",
    sampling_steps=3,
    labels="uniform",
    feature_network="fashion-cnn",
    micro_batch=10,
)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver"])
def test_images_do_not_depend_on_chunking_or_order(backbone: Backbone, sampler: str) -> None:
    protocol = PROTOCOL.model_copy(update={"sampler": sampler})
    whole = sample_images(backbone, backbone.transformer, protocol, range(30))
    again = torch.cat(
        [
            sample_images(backbone, backbone.transformer, protocol, range(17, 30)),
            sample_images(backbone, backbone.transformer, protocol, range(17)),
        ]
    )
    assert torch.equal(whole, again.roll(17, 0))
    some = [29, 3, 12]
    assert torch.equal(sample_images(backbone, backbone.transformer, protocol, some), whole[some])


def test_noise_of_a_sample_is_its_own() -> None:
    draws = [torch.randn(4, 7, 7, generator=g) for g in sample_generators(PROTOCOL, range(50))]
    assert len({draw.sum().item() for draw in draws}) == 50


def test_balanced_labels_deal_the_classes_in_turn() -> None:
    balanced = PROTOCOL.model_copy(update={"labels": "balanced"})
    assert sample_labels(balanced, 10, range(25)).bincount().tolist() == [3] * 5 + [2] * 5


def test_uniform_labels_are_a_function_of_the_index() -> None:
    assert torch.equal(
        sample_labels(PROTOCOL, 10, range(100))[60:], sample_labels(PROTOCOL, 10, range(60, 100))
    )
    assert sample_labels(PROTOCOL, 10, range(2000)).bincount().min() > 150


def forwards(backbone: Backbone, **changes: Any) -> list[int]:
    """Batch sizes of the forwards that one micro-batch takes."""
    sizes: list[int] = []
    record = backbone.transformer.register_forward_hook(
        lambda module, given, named, output: sizes.append(len(output.sample)), with_kwargs=True
    )
    sample_latents(backbone, backbone.transformer, PROTOCOL.model_copy(update=changes), range(10))
    record.remove()
    return sizes


def test_guidance_is_paid_for_where_it_is_asked_for(backbone: Backbone) -> None:
    """Of the timesteps 999, 500 and 0 the noise levels are 157, 3.4 and 0.01."""
    assert forwards(backbone) == [20, 20, 20]
    assert forwards(backbone, guidance=1.0) == [10, 10, 10]
    assert forwards(backbone, guidance_interval=(0.1, 10.0)) == [10, 20, 10]
    assert forwards(backbone, guidance_interval=(10.0, 1000.0)) == [20, 10, 10]


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("interval", [None, (0.1, 10.0), (10.0, 1000.0)])
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_forwards_are_counted_as_they_are_done(
    backbone: Backbone, spacing: Spacing, interval: tuple[float, float] | None, guidance: float
) -> None:
    changes = {"spacing": spacing, "guidance_interval": interval, "guidance": guidance, "sampling_steps": 5}
    protocol = PROTOCOL.model_copy(update=changes)
    assert sum(forwards(backbone, **changes)) == 10 * forwards_per_image(protocol, backbone.card)


def test_noise_levels_are_those_of_the_schedule() -> None:
    kept = linear_schedule().alphas_cumprod
    assert list(noise_levels("epsilon", TrainingSchedule())) == pytest.approx(
        ((1 - kept) / kept).sqrt().tolist(), rel=1e-9
    )


def test_an_interval_over_all_noise_levels_is_none_at_all(backbone: Backbone) -> None:
    whole = PROTOCOL.model_copy(update={"guidance_interval": (0.0, 1000.0)})
    images = [sample_images(backbone, backbone.transformer, each, range(10)) for each in (PROTOCOL, whole)]
    assert torch.equal(*images)


def test_figures_are_the_same_for_any_chunks_and_refuse_gaps(backbone: Backbone) -> None:
    def chunks(size: int) -> list[EvaluatedChunk]:
        starts = range(0, 30, size)
        return [
            evaluate_chunk(backbone, backbone.transformer, PROTOCOL, at, min(size, 30 - at)) for at in starts
        ]

    ten, twenty = chunks(10), chunks(20)
    reference = training_reference(backbone.card, feature_network_for(backbone, PROTOCOL))
    fingerprint = own_fingerprint(backbone.card.digest, PROTOCOL)
    report = compute_report(ten, reference, fingerprint)
    assert report == compute_report(reversed(twenty), reference, fingerprint)
    assert report.values["fid30/fashion-cnn"] == fid_at(backbone, backbone.transformer, PROTOCOL, 30)
    with pytest.raises(ValueError, match="are missing or repeated"):
        compute_report([ten[0], ten[2]], reference, fingerprint)
    with pytest.raises(ValueError, match="20 samples were evaluated"):
        compute_report(ten[:2], reference, fingerprint)


def test_the_metric_is_named_by_count_and_network() -> None:
    assert PROTOCOL.fid_name == "fid30/fashion-cnn"
    assert EvaluationProtocol().fid_name == "fid50k/inception"

"""What models predict, how they are trained on it and sampled from it agrees with diffusers' schedulers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from grafting_core.backbones.registry import load_backbone
from grafting_core.diffusion.objective import OBJECTIVES, Objective, objective_of
from grafting_core.diffusion.samplers import sampler_of
from grafting_core.diffusion.sampling import sample_conditions, sample_generators, sample_latents
from grafting_core.specs.backbone import backbone_cards
from grafting_core.specs.cost import image_flops
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.errors import SpecError
from grafting_core.specs.noise import TrainingSchedule, noise_levels
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.sampling_rules import SAMPLERS_OF, check_protocol
from tests.support.builders import QUICK
from tests.support.other_backbone import CARD
from tests.support.other_backbone import load_backbone as load_other
from tests.support.registered import only_registered

SCHEDULES = {
    "linear": TrainingSchedule(),
    "stable diffusion's": TrainingSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    "cosine": TrainingSchedule(beta_schedule="squaredcos_cap_v2"),
    "short": TrainingSchedule(num_train_timesteps=200, beta_end=0.05),
}

SHAPE = (3, 4, 6, 6)
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
shifts = pytest.mark.parametrize("shift", [1.0, 3.0])


def draws(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def config(schedule: TrainingSchedule) -> dict[str, Any]:
    return schedule.model_dump(exclude={"shift"})


def flow(shift: float) -> tuple[Objective, FlowMatchEulerDiscreteScheduler]:
    ours = OBJECTIVES["flow_velocity"](TrainingSchedule(shift=shift))
    return ours, FlowMatchEulerDiscreteScheduler(shift=shift)


@schedules
def test_noise_is_added_and_v_is_targeted_as_in_diffusers(schedule: TrainingSchedule) -> None:
    theirs, (clean, noise, output) = DDPMScheduler(**config(schedule)), draws(3)
    where = torch.tensor([0, 77, schedule.num_train_timesteps - 1])
    for name in ("epsilon", "v_prediction"):
        ours = OBJECTIVES[name](schedule)
        target = noise if name == "epsilon" else theirs.get_velocity(clean, noise, where)
        torch.testing.assert_close(ours.add_noise(clean, noise, where), theirs.add_noise(clean, noise, where))
        torch.testing.assert_close(ours.target(clean, noise, where), target)
        torch.testing.assert_close(
            ours.loss(output, clean, noise, where), (output - target).square().mean(dim=(1, 2, 3))
        )
        assert torch.equal(ours.model_timesteps(where), where)


@shifts
def test_a_flow_is_noised_timed_and_targeted_as_in_diffusers(shift: float) -> None:
    (ours, theirs), (clean, noise, output) = flow(shift), draws(3)
    where = torch.tensor([0, 500, 999])
    timesteps = theirs.timesteps.flip(0)[where]  # theirs descend
    torch.testing.assert_close(ours.model_timesteps(where), timesteps)
    noisy = theirs.scale_noise(clean, timesteps, noise)
    torch.testing.assert_close(ours.add_noise(clean, noise, where), noisy)
    torch.testing.assert_close(ours.target(clean, noise, where), noise - clean)
    loss = ours.loss(output, clean, noise, where)
    torch.testing.assert_close(loss, (output - noise + clean).square().mean(dim=(1, 2, 3)))


@schedules
@pytest.mark.parametrize("name", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_gives_back_the_noise(name: str, schedule: TrainingSchedule) -> None:
    ours, (clean, noise) = OBJECTIVES[name](schedule), draws(2)
    where = torch.tensor([0, 77, schedule.num_train_timesteps - 1])
    noisy, target = ours.add_noise(clean, noise, where), ours.target(clean, noise, where)
    predicted = ours.prediction(target, noisy, where)
    torch.testing.assert_close(predicted.noise, noise, rtol=1e-5, atol=1e-5)
    if predicted.clean is not None:
        torch.testing.assert_close(predicted.clean, clean, rtol=1e-5, atol=1e-5)


@shifts
def test_a_perfect_velocity_gives_back_the_noise(shift: float) -> None:
    (ours, _), (clean, noise) = flow(shift), draws(2)
    where = torch.tensor([0, 500, 999])
    noisy = ours.add_noise(clean, noise, where)
    predicted = ours.prediction(noise - clean, noisy, where)
    torch.testing.assert_close(predicted.noise, noise, rtol=1e-5, atol=1e-5)


def along(objective: Objective, name: Any, steps: int, step: Callable[[Tensor, int, Tensor], Tensor]) -> None:
    """Assert that our sampler takes the same path as `step`, on random outputs and the same noise."""
    sampler, outputs = sampler_of(name, objective, steps, "trailing"), draws(steps, seed=1)
    ours = theirs = draws(1)[0]
    generator = torch.Generator().manual_seed(5)
    for position, (timestep, output) in enumerate(zip(sampler.timesteps, outputs, strict=True)):
        predicted = objective.prediction(output, ours, torch.full((len(ours),), timestep))
        ours = sampler.step(position, ours, predicted, lambda: torch.randn(SHAPE, generator=generator))
        theirs = step(output, timestep, theirs)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@schedules
@pytest.mark.parametrize("name", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddim_is_diffusers(name: str, schedule: TrainingSchedule, steps: int) -> None:
    scheduler = DDIMScheduler(
        **config(schedule), prediction_type=name, timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(steps)
    along(OBJECTIVES[name](schedule), "ddim", steps, lambda out, t, x: scheduler.step(out, t, x).prev_sample)


@schedules
@pytest.mark.parametrize("name", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddpm_is_diffusers(name: str, schedule: TrainingSchedule, steps: int) -> None:
    scheduler = DDPMScheduler(
        **config(schedule), prediction_type=name, timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(5)
    along(
        OBJECTIVES[name](schedule),
        "ddpm",
        steps,
        lambda out, t, x: scheduler.step(out, t, x, generator=generator).prev_sample,
    )


@schedules
@pytest.mark.parametrize("name", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_dpm_solver_is_diffusers(name: str, schedule: TrainingSchedule, steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        **config(schedule), prediction_type=name, timestep_spacing="trailing", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    along(
        OBJECTIVES[name](schedule),
        "dpm_solver",
        steps,
        lambda out, t, x: scheduler.step(out, t, x).prev_sample,
    )


@shifts
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_flow_euler_is_diffusers(shift: float, steps: int) -> None:
    objective, scheduler = flow(shift)
    positions = [1 - step / steps for step in range(steps)]  # what "trailing" visits
    scheduler.set_timesteps(sigmas=positions)
    times = iter(scheduler.timesteps)
    along(objective, "flow_euler", steps, lambda out, t, x: scheduler.step(out, next(times), x).prev_sample)


def test_a_flow_model_is_sampled_as_diffusers_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Network, guidance of all channels, timesteps and steps, from noise to latents."""
    schedule = TrainingSchedule(shift=3.0)
    card = CARD.model_copy(update={"objective": "flow_velocity", "schedule": schedule, "latent_channels": 6})
    backbone = load_other(CARD, torch.device("cpu"))  # its six output channels are the velocity
    backbone.transformer.pos_embed.proj = torch.nn.Conv2d(6, 24, 2, 2).requires_grad_(False)
    backbone = type(backbone)(card, backbone.family, backbone.transformer, backbone.autoencoder)
    protocol = EvaluationProtocol(
        sampler="flow_euler",
        sampling_steps=8,
        spacing="trailing",
        guidance=2.0,
        guidance_channels="all",
        micro_batch=3,
    )
    ours = sample_latents(backbone, backbone.transformer, protocol, range(3))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - step / 8 for step in range(8)])
    latents = torch.stack([torch.randn(6, 8, 8, generator=g) for g in sample_generators(protocol, range(3))])
    labels = sample_conditions(backbone, protocol, range(3)).by_row["class_labels"]
    for timestep in scheduler.timesteps:
        asked, null = (
            backbone.transformer(latents, timestep=timestep.expand(3), class_labels=each).sample
            for each in (labels, torch.full_like(labels, 3))
        )
        latents = scheduler.step(null + 2.0 * (asked - null), timestep, latents).prev_sample
    assert latents.std() > 0.1
    torch.testing.assert_close(ours, latents, rtol=1e-5, atol=1e-5)


@schedules
def test_noise_levels_are_those_of_the_schedule(schedule: TrainingSchedule) -> None:
    kept = DDPMScheduler(**config(schedule)).alphas_cumprod.double()
    ours = torch.tensor(noise_levels("v_prediction", schedule), dtype=torch.float64)
    # Theirs are products of single precision.
    torch.testing.assert_close(ours, ((1 - kept) / kept).sqrt(), rtol=2e-3, atol=0)


@shifts
def test_noise_levels_of_a_flow_are_noise_over_signal(shift: float) -> None:
    sigmas = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.flip(0).double()
    ours = noise_levels("flow_velocity", TrainingSchedule(shift=shift))
    assert ours[-1] == float("inf")
    assert list(ours[:-1]) == pytest.approx((sigmas / (1 - sigmas))[:-1].tolist(), rel=1e-3)


def test_an_interval_costs_what_the_objectives_noise_levels_say() -> None:
    """Of ten steps of a flow at s = 1, 0.9 ... 0.1, those with s / (1 - s) in (0.5, 4] take two forwards."""
    card = CARD.model_copy(update={"objective": "flow_velocity"})
    protocol = EvaluationProtocol(
        sampler="flow_euler",
        sampling_steps=10,
        spacing="trailing",
        guidance=2.0,
        guidance_interval=(0.5, 4.2),
    )
    assert image_flops(protocol, card, 1000) == 15 * 1000
    assert image_flops(protocol, CARD, 1000) == 14 * 1000


@pytest.mark.parametrize(
    ("changes", "card", "message"),
    [
        ({"sampler": "ddpm"}, {"objective": "flow_velocity"}, "sampler: .*it is sampled with flow_euler"),
        ({"sampler": "flow_euler"}, {}, "sampler: .*with ddpm or ddim or dpm_solver"),
        (
            {"sampling_steps": 201},
            {"schedule": TrainingSchedule(num_train_timesteps=200)},
            "sampling_steps: .*200 timesteps",
        ),
        (
            {"guidance_channels": "first_3"},
            {"objective": "v_prediction", "latent_channels": 4},
            "guidance_channels: .*all channels",
        ),
        ({"guidance": 1.5}, {"num_classes": 0}, "guidance: .*takes no labels"),
        ({"pipeline": "diffusers"}, {"family": "other"}, "pipeline: .*samples DiTs.*family other"),
        (
            {"pipeline": "diffusers", "guidance_interval": (0.1, 2.0)},
            {},
            "guidance_interval: .*guides at every step",
        ),
        ({"pipeline": "diffusers", "precision": "bfloat16"}, {}, "precision: .*float32"),
        (
            {"pipeline": "diffusers", "spacing": "trailing"},
            {"objective": "flow_velocity"},
            "spacing: .*evenly between the first and the last level",
        ),
    ],
)
def test_a_protocol_that_does_not_go_with_the_backbone_is_refused(
    changes: dict[str, Any], card: dict[str, Any], message: str
) -> None:
    asked = CARD.model_copy(update=card)
    sampler = SAMPLERS_OF[asked.objective][0]
    fine = {"sampler": sampler, "guidance": 1.0, "guidance_channels": "all", "sampling_steps": 20}
    check_protocol(asked, EvaluationProtocol(**fine))
    with pytest.raises(ValueError, match=message):
        check_protocol(asked, EvaluationProtocol(**{**fine, **changes}))


def test_designs_of_a_flow_without_labels_get_what_goes_with_it() -> None:
    """Where nothing is said; what is said and does not fit is answered with its place in the document."""
    card = CARD.model_copy(
        update={
            "name": "flow",
            "weights": None,
            "objective": "flow_velocity",
            "num_classes": 0,
            "latent_channels": 6,
        }
    )
    bare = {name: value for name, value in QUICK.items() if name != "evaluate"}
    edits = [{"replace": "mlp", "layers": [0], "with": {"kind": "mlp", "ratio": 2.0}}]
    design = {"name": "a", "backbone": "flow", "edits": edits, **bare}
    with only_registered(card):
        spec = parse_submission(design)
        with pytest.raises(SpecError) as caught:
            parse_submission(
                {
                    **design,
                    "evaluate": {"sampler": "ddim", "guidance": 2.0, "guidance_channels": "first_3"},
                    "finetune": {"label_dropout": 0.1},
                }
            )
    assert (spec.evaluate.sampler, spec.evaluate.guidance) == ("flow_euler", 1.0)
    assert (spec.evaluate.guidance_channels, spec.finetune.label_dropout) == ("all", 0.0)
    assert {(each.pointer, each.code) for each in caught.value.problems} == {
        ("/evaluate/sampler", "does-not-fit"),
        ("/evaluate/guidance_channels", "does-not-fit"),
        ("/evaluate/guidance", "does-not-fit"),
        ("/finetune/label_dropout", "does-not-fit"),
    }
    assert "flow_euler" in str(caught.value)


def test_the_testbed_is_sampled_as_before() -> None:
    card = backbone_cards()["testbed/dit-fashion"]
    assert (card.objective, card.schedule) == ("epsilon_learned_variance", TrainingSchedule())
    assert objective_of(load_backbone(card.name).card) is objective_of(card)

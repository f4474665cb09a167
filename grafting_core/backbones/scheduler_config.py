"""The objective and noise schedule that the scheduler config of a diffusers pipeline states."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from grafting_core.backbones.dit_config import DiTConfig, read_json
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.noise import FLOW, LEARNED_VARIANCE, TrainingSchedule
from grafting_core.specs.sampling_rules import SAMPLERS_OF

FILE = Path("scheduler") / "scheduler_config.json"
FLOW_CLASSES = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
UNSUPPORTED = (
    "trained_betas",
    "rescale_betas_zero_snr",
    "use_flow_sigmas",
    "use_dynamic_shifting",
    "shift_terminal",
    "invert_sigmas",
)
"""Settings that change the noise a model is trained or sampled with, in ways that are not computed here."""


def read_objective(
    folder: Path, config: DiTConfig, objective: str | None = None
) -> tuple[str, TrainingSchedule]:
    """What the transformer predicts and under which noise: as the scheduler's config has it, else as given.

    `objective` goes before what the config says. Without either, a transformer with two outputs a channel
    predicts noise and variance over DiT's schedule. Raises ValueError where it cannot be told, is not
    supported, or does not go with the transformer's channels.
    """
    found = read_json(folder / FILE) if (folder / FILE).is_file() else None
    name = objective or _objective(folder, config, found)
    if name not in SAMPLERS_OF:
        raise ValueError(f"unknown objective {name!r}; use one of {', '.join(SAMPLERS_OF)}")
    _check_channels(config, name)
    return name, _schedule(folder / FILE, found or {}, name)


def _objective(folder: Path, config: DiTConfig, found: Mapping[str, Any] | None) -> str:
    learned = config.channels_out == 2 * config.in_channels
    if found is None and learned:
        return "epsilon_learned_variance"
    if found is None:
        choices = ", ".join(name for name in SAMPLERS_OF if name not in LEARNED_VARIANCE)
        raise ValueError(f"{folder} has no {FILE}, so what it predicts must be given: one of {choices}")
    if found.get("_class_name") in FLOW_CLASSES:
        return FLOW
    kind = found.get("prediction_type", "epsilon")
    if kind == "epsilon":
        return "epsilon_learned_variance" if learned else "epsilon"
    if kind != "v_prediction":
        raise ValueError(
            f"{folder / FILE}: prediction_type {kind!r} is not supported; epsilon and v_prediction are"
        )
    return "v_prediction"


def _check_channels(config: DiTConfig, objective: str) -> None:
    expected = config.in_channels * (2 if objective in LEARNED_VARIANCE else 1)
    if config.channels_out != expected:
        raise ValueError(
            f"a transformer of {config.in_channels} channels that predicts {objective} has out_channels "
            f"{expected}, not {config.channels_out}"
        )


def _schedule(file: Path, found: Mapping[str, Any], objective: str) -> TrainingSchedule:
    """Only what the objective depends on is taken, so that equal noise is an equal schedule."""
    refused = [name for name in UNSUPPORTED if found.get(name)]
    if refused:
        raise ValueError(f"{file}: {refused[0]} {found[refused[0]]!r} is not supported")
    fields = {"num_train_timesteps"}
    fields |= {"shift"} if objective == FLOW else {"beta_start", "beta_end", "beta_schedule"}
    try:
        return TrainingSchedule.model_validate({name: found[name] for name in fields if name in found})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{file}: {first['loc'][0]} is {first['input']!r}: {first['msg']}") from error


def write_scheduler(card: BackboneCard, folder: Path) -> None:
    """A scheduler's config from which `read_objective` takes the card's objective and schedule."""
    write_objective(folder, card.objective, card.schedule)


def scheduler_document(objective: str, trained_with: TrainingSchedule) -> dict[str, Any]:
    """The config of diffusers' scheduler for this objective and schedule."""
    schedule = trained_with.model_dump()
    if objective == FLOW:
        document = {name: schedule[name] for name in ("num_train_timesteps", "shift")}
        return document | {"_class_name": FLOW_CLASSES[0]}
    document = {name: value for name, value in schedule.items() if name != "shift"}
    document["_class_name"] = "DDPMScheduler"
    document["prediction_type"] = "v_prediction" if objective == "v_prediction" else "epsilon"
    document["variance_type"] = "learned_range" if objective in LEARNED_VARIANCE else "fixed_small"
    document["clip_sample"] = False
    return document


def write_objective(folder: Path, objective: str, trained_with: TrainingSchedule) -> None:
    """Write a scheduler's config from which `read_objective` takes this objective and schedule."""
    document = scheduler_document(objective, trained_with)
    file = folder / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")

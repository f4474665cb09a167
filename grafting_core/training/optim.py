"""Parts shared by both training stages: learning rates, divergence, and optimisers as flat tensors."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from grafting_core.specs.plans import Schedule


class Diverged(Exception):
    """Training produced a number that is not finite: a result about the design, not a machine fault."""


def learning_rate(peak: float, schedule: Schedule, warmup: int, step: int, steps: int) -> float:
    """Learning rate of step i (from 0): linear warm-up, then constant or cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def adamw(module: nn.Module, rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.999), as in the reference code, and one fused kernel per parameter."""
    # As a group, because a module may have no parameters.
    group = {"params": list(module.parameters())}
    return torch.optim.AdamW([group], lr=rate, betas=(0.9, 0.999), weight_decay=weight_decay, fused=True)


def clip_gradients(module: nn.Module, limit: float) -> None:
    """Scale all gradients so that their total norm is at most `limit`, without waiting for the device."""
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    # On the CPU the comparison is free, and most steps need no scaling (scaling by 1 changes no bit).
    if norm.device.type != "cpu" or not norm <= limit:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def optimiser_tensors(optimiser: torch.optim.Optimizer, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """State of the optimiser under flat names, one per parameter and field."""
    for index, fields in optimiser.state_dict()["state"].items():
        for name, value in fields.items():
            yield f"{prefix}{index}.{name}", torch.as_tensor(value)


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Restore the result of `optimiser_tensors`."""
    document = optimiser.state_dict()
    for key in tensors:
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".")
            document["state"].setdefault(int(index), {})[name] = tensors[key]
    optimiser.load_state_dict(document)

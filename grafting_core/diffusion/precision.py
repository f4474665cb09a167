"""Precision of a network's forwards."""

from contextlib import AbstractContextManager, nullcontext

import torch

from grafting_core.specs.plans import Precision


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Context for matrix products in this precision, on every device, as keys do not name the device."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()

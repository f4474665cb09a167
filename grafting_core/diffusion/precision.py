"""Precision of a network's forwards."""

from contextlib import AbstractContextManager, nullcontext

import torch

from grafting_core.specs.plans import Precision


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Matrix products in this precision, on whatever device: what a key names does not depend on it."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()

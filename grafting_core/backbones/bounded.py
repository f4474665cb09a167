"""Sizes of networks by their configs, compared with the stored weights before any network is built."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

FACTOR = 2
"""Parts of a network may be missing in a file, such as a head; they are named after it is built."""
FREE_ELEMENTS, FREE_TENSORS = 10_000_000, 1_000
MAX_NUMBER = 2**24
"""Of any whole number in a config: no width, side or number of layers is larger."""
CONFIG_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What libraries raise when they build a network from a config that is wrong."""


class TooLarge(ValueError):
    """A config describes a network that is much larger than its stored weights."""


def check_elements(folder: Path, described: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise TooLarge for a network of so many parameters if the folder's weights are far fewer."""
    stored = sum(map(prod, shapes.values()))
    if described > FACTOR * stored + FREE_ELEMENTS:
        raise TooLarge(
            f"{folder}: the weights do not match its config.json, which describes {described:,} parameters; "
            f"{stored:,} are stored"
        )


def check_numbers(folder: Path, config: Any, name: str = "config.json") -> None:
    """Raise TooLarge naming a whole number in a JSON document that no network has."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            check_numbers(folder, value, str(key))
    elif isinstance(config, list | tuple):
        for value in config:
            check_numbers(folder, value, name)
    elif isinstance(config, int) and abs(config) > MAX_NUMBER:
        raise TooLarge(f"{folder}: {name} is {config:.6g}; at most {MAX_NUMBER:,} is supported")


@contextmanager
def bounded(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """While this lasts, a network that is built may have the parameters of these stored shapes and few more.

    Raises TooLarge at the first parameter beyond that, before it gets values.
    """
    stored = sum(map(prod, shapes.values()))
    most, most_tensors = FACTOR * stored + FREE_ELEMENTS, FACTOR * len(shapes) + FREE_TENSORS
    seen = dict[tuple[int, str], int]()
    total = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        size = 0 if parameter is None else parameter.numel()
        total += size - seen.get((id(module), name), 0)
        seen[id(module), name] = size
        if total > most or len(seen) > most_tensors:
            raise TooLarge(
                f"{folder}: the weights do not match its config.json, which describes more than "
                f"{total:,} parameters in {len(seen):,} tensors; {stored:,} in {len(shapes):,} are stored"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()

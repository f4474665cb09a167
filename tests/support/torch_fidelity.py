"""Import torch-fidelity without torchvision, which the functions on features do not use: a stub replaces
it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

STUBBED = (
    "torchvision",
    "torchvision.models",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.datasets",
)


def _anything(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


@contextmanager
def imported_torch_fidelity() -> Iterator[Callable[[str], Any]]:
    """Yield a function that imports a module of torch-fidelity by its short name; all are unloaded
    afterwards.
    """
    before = set(sys.modules)
    for name in STUBBED:
        sys.modules[name] = _stub(name)
    import_module("torch_fidelity")
    for name in STUBBED:
        del sys.modules[name]
    yield lambda name: import_module(f"torch_fidelity.{name}")
    for name in set(sys.modules) - before:
        if name.startswith("torch_fidelity"):
            del sys.modules[name]


def _stub(name: str) -> ModuleType:
    stub = ModuleType(name)
    stub.__path__ = []
    stub.__getattr__ = _anything  # type: ignore[method-assign]
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, stub)
    return stub

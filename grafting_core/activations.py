"""What goes into and comes out of an operator while the backbone runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from grafting_core.backbones.dit import get_operator
from grafting_core.spec.site import GraftSite

Visitor = Callable[[Tensor, Tensor], None]
"""Called with an operator's input and output [B, T, D]."""


@contextmanager
def visited(transformer: nn.Module, visitors: Mapping[GraftSite, Visitor]) -> Iterator[None]:
    """While open, every forward calls each site's visitor; nothing is kept, nothing is changed."""
    handles = [
        get_operator(transformer, site).register_forward_hook(_hook(visitor))
        for site, visitor in visitors.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(visitor: Visitor) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        visitor(inputs[0], output)

    return hook

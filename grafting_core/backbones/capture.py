"""What goes into and comes out of parts of the backbone while it runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from grafting_core.backbones.base import Backbone
from grafting_core.specs.site import GraftSite

ActivationHook = Callable[[Tensor, Tensor], None]
"""Called with a region's input [B, T, D_in] and output [B, T, D]."""


class CapturePoint(Protocol):
    """A part of the backbone that new modules learn to imitate. Hashable; equal regions are watched once."""

    def __hash__(self) -> int: ...

    def watch(self, backbone: Backbone, visitor: ActivationHook) -> Sequence[RemovableHandle]:
        """Call `visitor` in every forward once the output is there; removing the handles ends that."""


@dataclass(frozen=True)
class OperatorCapture:
    """The operator standing at one site: its input and its output."""

    site: GraftSite

    def watch(self, backbone: Backbone, visitor: ActivationHook) -> Sequence[RemovableHandle]:
        return [backbone.get_operator(self.site).register_forward_hook(_hook(visitor))]


@contextmanager
def capture(backbone: Backbone, visitors: Mapping[CapturePoint, ActivationHook]) -> Iterator[None]:
    """While open, every forward calls each region's visitor; nothing is kept, nothing is changed."""
    with ExitStack() as stack:
        for region, visitor in visitors.items():
            for handle in region.watch(backbone, visitor):
                stack.callback(handle.remove)
        yield


@contextmanager
def visited(backbone: Backbone, visitors: Mapping[GraftSite, ActivationHook]) -> Iterator[None]:
    """`watched` for the operators at these sites."""
    with capture(backbone, {OperatorCapture(site): visitor for site, visitor in visitors.items()}):
        yield


def _hook(visitor: ActivationHook) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        visitor(inputs[0], output)

    return hook

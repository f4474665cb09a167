"""Capture inputs and outputs of parts of the backbone during its forward."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from grafting_core.backbones.base import Backbone
from grafting_core.specs.site import GraftSite

ActivationHook = Callable[[Tensor, Tensor], None]
"""Called with a point's input [B, T, D_in] and output [B, T, D]."""


class CapturePoint(Protocol):
    """Part of the backbone that students are trained to match. Hashable; equal points are captured once."""

    def __hash__(self) -> int: ...

    def register(self, backbone: Backbone, hook: ActivationHook) -> Sequence[RemovableHandle]:
        """Call `hook` in every forward after the output is computed; removing the handles ends it."""


@dataclass(frozen=True)
class OperatorCapture:
    """Input and output of the operator at one site."""

    site: GraftSite

    def register(self, backbone: Backbone, hook: ActivationHook) -> Sequence[RemovableHandle]:
        return [backbone.get_operator(self.site).register_forward_hook(_hook(hook))]


@contextmanager
def capture(backbone: Backbone, hooks: Mapping[CapturePoint, ActivationHook]) -> Iterator[None]:
    """Context in which every forward calls each capture point's hook; outputs are not changed."""
    with ExitStack() as stack:
        for point, hook in hooks.items():
            for handle in point.register(backbone, hook):
                stack.callback(handle.remove)
        yield


@contextmanager
def capture_operators(backbone: Backbone, hooks: Mapping[GraftSite, ActivationHook]) -> Iterator[None]:
    """`capture` for the operators at these sites."""
    with capture(backbone, {OperatorCapture(site): hook for site, hook in hooks.items()}):
        yield


def _hook(hook: ActivationHook) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def forward_hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        hook(inputs[0], output)

    return forward_hook

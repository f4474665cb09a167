"""Evaluate hybrids from the bank without finetuning, on a backbone that is loaded once."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from grafting_core.backbones.base import Backbone
from grafting_core.data.datasets import encode_held_out
from grafting_core.data.latents import Latents
from grafting_core.evaluation.evaluate import denoising_loss_of, fid_at
from grafting_core.specs.design import GraftDesign, Part
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.rungs import LossGapRung, Rung
from grafting_core.specs.screening import Screened
from grafting_core.surgery.operate import Undo, operate


@dataclass
class Screener:
    """Evaluates hybrids; caches what they share: backbone, latents, the teacher's loss, built scions."""

    backbone: Backbone
    protocol: EvaluationProtocol
    scion: Callable[[Part], nn.Module]
    """Gives the distilled module of a part, from the bank."""
    _built: dict[Part, nn.Module] = field(default_factory=dict)
    _latents: Latents | None = None
    _teacher_losses: dict[int, float] = field(default_factory=dict)

    def evaluate(self, design: GraftDesign, rung: Rung) -> Screened:
        """Value of one hybrid on one rung; the backbone is restored afterwards."""
        began = time.monotonic()
        if isinstance(rung, LossGapRung):
            teacher = self._teacher_loss(rung.draws)
            with self._assembled(design):
                value = denoising_loss_of(self.backbone, self.latents, rung.draws) - teacher
        else:
            with self._assembled(design):
                value = fid_at(self.backbone, self.backbone.transformer, self.protocol, rung.samples)
        return Screened(value=value, seconds=time.monotonic() - began)

    @property
    def latents(self) -> Latents:
        if self._latents is None:
            self._latents = encode_held_out(self.backbone, self.protocol.dataset)
        return self._latents

    def _teacher_loss(self, draws: int) -> float:
        if draws not in self._teacher_losses:
            self._teacher_losses[draws] = denoising_loss_of(self.backbone, self.latents, draws)
        return self._teacher_losses[draws]

    def _assembled(self, design: GraftDesign) -> "_Assembled":
        return _Assembled(self, design)

    def module(self, part: Part) -> nn.Module:
        """The scion of a part, built once."""
        if part not in self._built:
            self._built[part] = self.scion(part).to(self.backbone.device).requires_grad_(False).eval()
        return self._built[part]


class _Assembled:
    """Context manager: turns the backbone into a hybrid, and back on exit."""

    def __init__(self, screener: Screener, design: GraftDesign) -> None:
        self._screener, self._design = screener, design
        self._undo: Undo | None = None

    def __enter__(self) -> nn.Module:
        screener, design = self._screener, self._design
        modules = {part.place: screener.module(part) for part in design.parts}
        self._undo = operate(screener.backbone, design, modules)
        return screener.backbone.transformer

    def __exit__(self, *_: object) -> None:
        if self._undo is not None:
            self._undo.undo()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

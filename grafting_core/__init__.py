"""Library for grafting diffusion transformers: its public functions.

Each name is loaded when it is first used, so importing the package loads no torch.
"""

from importlib import import_module
from typing import Any

EXPORTS = {
    "Bank": "grafting_core.storage.bank",
    "Storage": "grafting_core.storage.storage",
    "build_operator": "grafting_core.operators.table",
    "distill": "grafting_core.distillation.distill",
    "encode_held_out": "grafting_core.data.datasets",
    "encode_latents": "grafting_core.data.datasets",
    "evaluate": "grafting_core.evaluation.evaluate",
    "export_model": "grafting_core.export.folder",
    "finetune": "grafting_core.training.finetune",
    "import_checkpoint": "grafting_core.backbones.released_grafts",
    "load_backbone": "grafting_core.backbones.registry",
    "load_grafted": "grafting_core.export.folder",
    "operate": "grafting_core.surgery.operate",
    "parse_submission": "grafting_core.specs.documents.designs",
    "replacement_student": "grafting_core.distillation.student",
    "sample_images": "grafting_core.diffusion.sampling",
}
"""Public name -> module that defines it."""
__all__ = list(EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(EXPORTS)}")
    return getattr(import_module(EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *EXPORTS])

"""Code files of an exported graft: its model class with the operators that it has, and its pipeline."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from grafting_core.backbones.dit_config import GRAFTED_CLASS, DiTConfig
from grafting_core.export.written_code import Writer
from grafting_core.operators.table import construction_of

MODEL, PIPELINE = "grafted_dit", "pipeline"
"""Names of the modules in the folder of the weights and in the export's folder."""
PIPELINE_CLASS = "GraftedDiTPipeline"
HERE = __name__.rpartition(".")[0]


def module_rows(config: DiTConfig) -> list[dict[str, Any]]:
    """For every edit the class of its operator and the class's arguments, as JSON has them.

    Raises ValueError, which names the package, for an operator of another package.
    """
    rows = []
    for edit in config.edits:
        construction = construction_of(edit.operator)
        given = construction.arguments(edit.operator, config.dims)
        arguments = {name: list(each) if isinstance(each, tuple) else each for name, each in given.items()}
        place = {"block": edit.site.block, "slot": edit.site.slot}
        rows.append({**place, "class": construction.module.__name__, "arguments": arguments})
    return rows


def model_code(config: DiTConfig) -> str:
    """Source of the model's class and of its operators; it imports torch and diffusers alone."""
    classes = list(dict.fromkeys(construction_of(edit.operator).module for edit in config.edits))
    writer = Writer()
    for each in classes:
        if not _is_torchs(each):
            writer.add(each.__module__, each.__name__)
    writer.add(f"{HERE}.{MODEL}", "nn")
    writer.assign("OPERATORS", _table(classes))
    writer.add(f"{HERE}.{MODEL}", GRAFTED_CLASS)
    return writer.text("A DiT of diffusers with the operators of this graft.")


def pipeline_code() -> str:
    """Source of the pipeline, which imports torch and diffusers alone."""
    writer = Writer()
    writer.add(f"{HERE}.{PIPELINE}", PIPELINE_CLASS)
    return writer.text("Pipeline of diffusers for this graft.")


def _table(classes: Iterable[type[nn.Module]]) -> str:
    names = [
        (each.__name__, f"nn.{each.__name__}" if _is_torchs(each) else each.__name__) for each in classes
    ]
    entries = ", ".join(f'"{name}": {value}' for name, value in names)
    return f"OPERATORS = {{{entries}}}"


def _is_torchs(cls: type[nn.Module]) -> bool:
    return cls.__module__.split(".")[0] == "torch"

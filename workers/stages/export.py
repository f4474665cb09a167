"""EXPORT: the model of a finished run as a folder that diffusers loads, with a digest of every file."""

import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from grafting_core.export.folder import export_model
from grafting_core.specs.experiment import finetune_key
from grafting_core.specs.exports import ExportSpec, export_folder
from grafting_core.storage.artifacts import CARD, READ_ERRORS, CorruptArtifact, keep_published, published_file
from grafting_core.storage.artifacts import read_card as published_card
from grafting_core.storage.folders import CONTENT, publish_folder
from workers.contract import StageReport
from workers.stages.context import Context
from workers.stages.intake import BadInput

STAGING, WRITTEN = "exports/staging", "export"
"""Unfinished files by run, which the scheduler deletes once the run has ended; the export in it."""


def run(context: Context) -> StageReport:
    """Write the folder unless it is published. Rank 0 does it; the others wait."""
    work = context.work
    if not isinstance(work, ExportSpec):
        raise ValueError(f"{work.name} is {work.kind} work, not an export")
    folder = export_folder(work.digest)
    reused = keep_published(context.storage, folder)
    if not reused and context.group.leads:
        _publish(context, work, folder)
    context.group.barrier()
    return StageReport(
        stage="export",
        key=work.digest,
        artifacts={CARD: f"{folder}/{CARD}", **_files(context, folder)},
        stop_cause="reused" if reused else "completed",
    )


def _publish(context: Context, work: ExportSpec, folder: str) -> None:
    observer = context.observer("export", work.digest)
    observer.progress(0, 2, {})
    staging = _staging(context)
    try:
        target, state = staging / WRITTEN, _state(context, work, staging)
        export_model(context.backbone, work.experiment.design, state, target, work.record)
        observer.progress(1, 2, {})
        card = {"made_by": context.ticket.run_id, "record": work.record.model_dump(mode="json")}
        publish_folder(context.storage, folder, target, card)
    except ValueError as error:
        raise BadInput(str(error)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    observer.progress(2, 2, {})


def _staging(context: Context) -> Path:
    """The run's empty place for unfinished files, on the storage's own disk if that is this machine's."""
    run_id = context.ticket.run_id
    if context.storage.is_local:
        staging = context.storage.local_path(f"{STAGING}/{run_id}")
    else:
        staging = Path(tempfile.gettempdir()) / "graftlab-exports" / run_id
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def _state(context: Context, work: ExportSpec, staging: Path) -> dict[str, Tensor]:
    """Weights that the run published, verified and left in their file until they are used.

    Of a design without edits they are the backbone's own.
    """
    if work.experiment.design.is_teacher:
        return dict(context.backbone.transformer.state_dict())
    folder = f"models/{finetune_key(work.experiment)}"
    try:
        state: dict[str, Tensor] = load_file(published_file(context.storage, folder, staging))
    except (CorruptArtifact, *READ_ERRORS) as error:
        text = f"the model of run {work.run} cannot be read: {error}; run its design again"
        raise BadInput(text) from error
    return state


def _files(context: Context, folder: str) -> dict[str, str]:
    """Name within the folder -> path, of every file."""
    card = published_card(context.storage, folder)
    names = sorted([card["file"], *card["files"]])
    return {str(name).removeprefix(f"{CONTENT}/"): f"{folder}/{name}" for name in names}

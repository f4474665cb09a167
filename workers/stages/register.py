"""REGISTER: copy or make the files of a backbone, data set or feature network, check and publish them.

Checks read the lab's copy under `registry/staging/<run>`, where a later attempt continues. It is published in
the registry, card last, only if it is complete and every check has passed.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from grafting_core.backbones.checkpoint_file import COUNTS
from grafting_core.backbones.diffusers_folder import transformer_folder
from grafting_core.backbones.published_figures import PUBLISHED_FID
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.registration import Registered, RegistrationSpec, registry_folder
from grafting_core.storage.artifacts import CARD, damage, keep_published, read_card
from grafting_core.storage.bank import Bank
from grafting_core.storage.folders import CONTENT, local_folder, publish_folder
from grafting_core.training.observer import Observer, StopRequested
from workers.contract import StageReport
from workers.stages.checkpoints import CHECKPOINT, bank_operators
from workers.stages.context import Context
from workers.stages.intake import BadInput, Roots
from workers.stages.registering import (
    Card,
    Intake,
    add_backbone,
    add_dataset,
    add_features,
    encode,
    made_of_checkpoint,
    train,
)

STAGING = "registry/staging"
MEBI = 2**20
ABANDONED_SECONDS = 7 * 86_400.0
REGISTRANTS = {"name", "licence", "dataset", "feature_network", "origin", "weights", "folder"}
"""Fields of cards that are decided by the user who registers. All users who register equal files share the
published ones, so their card has only what follows from the files.
"""
SOURCE_FIGURES = {PUBLISHED_FID, *COUNTS}
"""Figures that a checkpoint or the name of its folder states; another source of the same files has others."""


def run(context: Context) -> StageReport:
    """Carry out a registration. Raises BadInput with a message for its user, or StopRequested."""
    work = context.work
    if not isinstance(work, RegistrationSpec):
        raise ValueError(f"{work.name} is {work.kind} work, not a registration")
    if work.action == "verify":
        return _verify(context, work)
    staging = _staging(context)
    progress = PhaseProgress(context)
    roots = Roots(context.ticket.import_roots, context.ticket.closed_folders)
    intake = Intake(work, staging, roots, context.group.device, progress)
    try:
        card = MAKERS[work.what, work.action](intake)
    except StopRequested:
        raise
    except BadInput:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    except ValueError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise BadInput(_sentence(error, staging)) from error
    from_checkpoint = made_of_checkpoint(intake)
    size, reused = _publish(context, work, card, staging, progress)
    shutil.rmtree(staging, ignore_errors=True)
    metrics = {"bytes": float(size)}
    if from_checkpoint and isinstance(card, BackboneCard):
        metrics["scions"] = float(len(_bank_operators(context, card)))
    return StageReport(
        stage="register",
        key=work.digest,
        artifacts={CARD: f"{registry_folder(work.what, card.digest)}/{CARD}"},
        metrics=metrics,
        stop_cause="reused" if reused else "completed",
        registered=Registered.of(card, size),
    )


MAKERS: Mapping[tuple[str, str], Callable[[Intake], Card]] = {
    ("backbone", "add"): add_backbone,
    ("dataset", "add"): add_dataset,
    ("dataset", "encode"): encode,
    ("features", "add"): add_features,
    ("features", "train"): train,
}


def _bank_operators(context: Context, card: BackboneCard) -> list[str]:
    """Put what a released graft holds into the bank; keys. What is there already stays."""
    published = local_folder(context.storage, registry_folder("backbone", card.digest))
    bank = Bank(context.storage)
    return bank_operators(bank, card, transformer_folder(published), context.ticket.run_id)


def _staging(context: Context) -> Path:
    """Make the run's staging folder; all attempts share it if storage is on this machine."""
    run_id = context.ticket.run_id
    if context.storage.is_local:
        staging = context.storage.local_path(f"{STAGING}/{run_id}")
    else:
        staging = Path(tempfile.gettempdir()) / "graftlab-staging" / run_id
        _remove_abandoned(staging.parent)
    staging.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.utime(staging)
    return staging


def _remove_abandoned(folder: Path) -> None:
    """Delete what attempts on this machine have left that were killed, and were never gone on with here."""
    for staging in folder.iterdir() if folder.is_dir() else ():
        if time.time() - staging.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(staging, ignore_errors=True)


def _sentence(error: ValueError, staging: Path) -> str:
    """Return an error's message without the path of the lab's copy."""
    text = str(error).replace(f"{staging / CHECKPOINT}/", "")
    text = text.replace(f"{staging / CONTENT}/", "").replace(str(staging / CONTENT), "the folder")
    return text.replace(f"{staging}/", "")


def _publish(
    context: Context, work: RegistrationSpec, card: Card, staging: Path, progress: "PhaseProgress"
) -> tuple[int, bool]:
    """Publish the files; return their bytes, and whether they were published already, intact."""
    folder, storage = registry_folder(work.what, card.digest), context.storage
    if keep_published(storage, folder):
        return int(read_card(storage, folder)["size"]), True
    files = [file for file in (staging / CONTENT).rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if work.max_bytes is not None and size > work.max_bytes:
        shutil.rmtree(staging, ignore_errors=True)
        raise BadInput(f"it has {size:,} bytes; its owner may register {work.max_bytes:,} more")
    document = {
        "card": _shared(card),
        "size": size,
        "what": work.what,
    }
    publish_folder(
        storage, folder, staging / CONTENT, document, lambda done, total: progress(done, total, "verified")
    )
    return size, False


def _shared(card: Card) -> dict[str, object]:
    """What follows from the files alone of a card."""
    document: dict[str, object] = card.model_dump(mode="json", exclude=REGISTRANTS)
    if isinstance(card, BackboneCard):
        figures = {name: value for name, value in card.figures.items() if name not in SOURCE_FIGURES}
        document["figures"] = figures
    return document


def _verify(context: Context, work: RegistrationSpec) -> StageReport:
    """Read a revision again. Raises BadInput if a file differs from what was registered."""
    assert work.subject is not None
    folder = registry_folder(work.what, work.subject)
    observer = context.observer("register", work.digest)
    observer.progress(0, 1, {})
    wrong = damage(context.storage, folder)
    observer.progress(1, 1, {})
    if wrong is not None:
        raise BadInput(f"{work.name} is damaged: {wrong}; register it again from its source")
    size = int(read_card(context.storage, folder)["size"])
    return StageReport(stage="register", key=work.digest, metrics={"bytes": float(size)})


@dataclass
class PhaseProgress:
    """Progress of a registration by phase; steps and time left start anew with each phase."""

    context: Context
    _phase: str = ""
    _observer: Observer | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        """Report that `done` of `total` steps or bytes of phase `what` are done."""
        scale = MEBI if total > 2**30 else 1
        if what != self._phase or self._observer is None:
            self._phase = what
            self._observer = self.context.observer("register", self.context.work.digest)
        self._observer.progress(done // scale, total // scale, {})

    def stopped(self) -> bool:
        """Check whether the work was asked to end at the next point from which it can continue."""
        return self._observer is not None and self._observer.stop_requested()

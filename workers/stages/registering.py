"""Make the card of what is registered: each function fills the folder `content` and checks it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from grafting_core.backbones.diffusers_folder import TRANSFORMER, transformer_folder
from grafting_core.backbones.dit_config import MAX_JSON_BYTES, DiTConfig, read_config
from grafting_core.backbones.model_card import README, stated_facts
from grafting_core.backbones.registered import BackboneFolder, read_card
from grafting_core.backbones.released_grafts import ImportedCheckpoint
from grafting_core.backbones.weight_files import CONFIG, files_of
from grafting_core.data.datasets import load_dataset
from grafting_core.data.encode import encode_folder
from grafting_core.data.encoders import Encoder, load_encoder
from grafting_core.data.latent_folder import read_dataset
from grafting_core.data.opening import Access
from grafting_core.evaluation.features.image_models import read_feature_folder
from grafting_core.evaluation.features.train import train_classifier
from grafting_core.specs.backbone import BackboneCard, HeldOutImages, card_of
from grafting_core.specs.datasets import DATASETS, DatasetCard
from grafting_core.specs.features import FeatureCard
from grafting_core.specs.registration import CHECKPOINTS, NO_AUTOENCODER, RegistrationSpec, TrainSettings
from grafting_core.storage.folders import CONTENT
from grafting_core.training.observer import StopRequested
from workers.stages.checkpoints import convert, copy_of, copy_weights
from workers.stages.hub import download
from workers.stages.intake import (
    BadInput,
    Roots,
    SourceFile,
    check_links,
    check_same,
    copy_files,
    list_files,
    source_file,
)

Card = BackboneCard | DatasetCard | FeatureCard
HUB = "hub"
"""Folder of the staging area with what was downloaded."""


class Progress(Protocol):
    """Callback with the progress of a phase; `stopped` says whether the work was asked to end."""

    def __call__(self, done: int, total: int, what: str) -> None: ...

    def stopped(self) -> bool: ...


@dataclass(frozen=True)
class Intake:
    """A registration while it is carried out."""

    work: RegistrationSpec
    staging: Path
    allowed: Roots
    device: torch.device
    progress: Progress

    @property
    def content(self) -> Path:
        """Folder that will be published."""
        return self.staging / CONTENT


def add_backbone(intake: Intake) -> BackboneCard:
    """Copy a pipeline's folder, or convert a checkpoint, and read the card from the result."""
    source, roots = _source(intake)
    checkpoint = source if intake.work.is_checkpoint else _only_checkpoint(intake)
    if checkpoint is not None:
        imported = _converted(intake, checkpoint, roots)
        card = _read_backbone(intake)
        figures = {**imported.figures, **card.figures}
        return card.model_copy(update={"origin": imported.origin, "figures": figures})
    _copied(intake, lambda: _files_of_backbone(intake, source, roots))
    return _read_backbone(intake)


def made_of_checkpoint(intake: Intake) -> bool:
    """Whether a backbone is made of a checkpoint, which for a repository its download tells."""
    return intake.work.is_checkpoint or _only_checkpoint(intake) is not None


def _only_checkpoint(intake: Intake) -> Path | None:
    """The checkpoint in a downloaded repository that holds nothing else that is registered."""
    files = sorted((intake.staging / HUB).rglob("*")) if intake.work.what == "backbone" else []
    return next((file for file in files if file.name.endswith(CHECKPOINTS)), None)


def _converted(intake: Intake, source: Path, roots: Roots | None) -> ImportedCheckpoint:
    """Copy a checkpoint and an autoencoder, and write the checkpoint's transformer into the same folder.

    Raises BadInput where no autoencoder is named, or neither the work nor a model card states a licence.
    """
    work = intake.work
    copy = copy_of(intake.staging, source, work.hub)
    readme = intake.staging / HUB / README
    _check_complete(work, readme)
    checkpoint = source_file(source, copy.name, roots)
    decoder = None if work.vae == NO_AUTOENCODER else Path(str(work.vae))
    if decoder is not None:
        list_files(decoder, intake.allowed)
    parts = {f"vae/{file.name}": file for file in (files_of(decoder) if decoder else [])}
    files = [source_file(path, name, intake.allowed) for name, path in sorted(parts.items())]
    files += [source_file(readme, README, None)] if readme.is_file() else []
    _check_size(intake, files)
    left = None if work.max_bytes is None else work.max_bytes - sum(file.size for file in files)
    copy_weights(
        checkpoint,
        copy,
        roots,
        left,
        lambda done, total: intake.progress(done, total, "copied to checkpoint"),
        intake.progress.stopped,
    )
    _forget_others(intake.content, files)
    _copy(intake, files, intake.content)
    intake.progress(0, 1, "converted")
    imported = convert(copy, intake.content, left)
    intake.progress(1, 1, "converted")
    return imported


def _check_complete(work: RegistrationSpec, readme: Path) -> None:
    if work.vae is None:
        raise BadInput("a checkpoint has no autoencoder; name the folder of one as vae")
    if work.licence is None and stated_facts(readme.parent).licence is None:
        raise BadInput("neither the checkpoint nor a model card names a licence; give the publisher's")


def _read_backbone(intake: Intake) -> BackboneCard:
    work = intake.work
    card = read_card(
        intake.content,
        name=work.name,
        dataset=work.trained_on,
        vae=NO_AUTOENCODER if work.vae == NO_AUTOENCODER else None,
        licence=work.licence,
        objective=work.objective,
        progress=lambda done, total, what: intake.progress(done, total, "checked"),
    )
    return _with_data(card.model_copy(update={"weights": None}))


def _with_data(card: BackboneCard) -> BackboneCard:
    """Add the numbers of images of the card's data set, if that is registered."""
    entry = DATASETS.entries.get(card.dataset or "")
    if entry is None or entry.card is None:
        return card
    data = entry.card
    unseen = HeldOutImages(images=data.held_out, digest=data.digest) if data.held_out else None
    return card.model_copy(update={"num_images": data.training, "held_out": unseen})


def _files_of_backbone(intake: Intake, source: Path, roots: Roots | None) -> list[SourceFile]:
    """List the backbone's files; those of its autoencoder are in the folder `vae` if the work names one."""
    work = intake.work
    list_files(source, roots)
    elsewhere = work.vae if work.vae not in (None, NO_AUTOENCODER) else None
    if elsewhere is not None:
        list_files(Path(elsewhere), intake.allowed)
    config = _config_of(intake, source, roots)
    parts = BackboneFolder(source, Path(elsewhere) if elsewhere else work.vae).files(config)
    return [source_file(path, name, roots) for name, path in sorted(parts.items())]


def _config_of(intake: Intake, source: Path, roots: Roots | None) -> DiTConfig:
    """The transformer's config, read from a copy: its text, which errors quote, may have been exchanged."""
    file = source_file(transformer_folder(source) / CONFIG, f"{TRANSFORMER}/{CONFIG}", roots)
    if file.size > MAX_JSON_BYTES:
        raise BadInput(f"{file.path} has {file.size:,} bytes; a config has up to {MAX_JSON_BYTES:,}")
    copy_files([file], intake.content, roots, lambda done, total: None)
    return read_config(intake.content / TRANSFORMER)


def add_dataset(intake: Intake) -> DatasetCard:
    """Copy an encoded folder and verify the copy."""
    source, roots = _source(intake)
    _copied(intake, lambda: list_files(source, roots))
    return _read_dataset(intake)


def _read_dataset(intake: Intake) -> DatasetCard:
    card = read_dataset(intake.content)
    licence = intake.work.licence or card.licence
    return card.model_copy(update={"name": intake.work.name, "licence": licence, "folder": None})


def encode(intake: Intake) -> DatasetCard:
    """Encode images; shards of a stopped attempt are kept for the next one."""
    work = intake.work
    if work.encode is None:
        raise ValueError(f"{work.name} is to be encoded without settings")
    source, _ = _source(intake)
    check_links(source, intake.allowed)
    encoder = _encoder(intake)
    try:
        encode_folder(
            source,
            intake.content,
            work.encode,
            encoder,
            intake.progress,
            intake.progress.stopped,
            # Links are followed up to here; what is opened may have been exchanged since.
            Access(intake.allowed.admit),
            work.max_bytes,
        )
    except FileNotFoundError as error:
        raise BadInput(f"{error.filename} is gone; nothing was registered") from error
    return _read_dataset(intake)


def _encoder(intake: Intake) -> Encoder | None:
    """Load the autoencoder that encodes the images; None for pixels."""
    work = intake.work
    if work.encoder is not None:
        card = card_of(work.encoder)
        folder = None if card.autoencoder == NO_AUTOENCODER else Path(str(card.weights)) / "vae"
    elif work.vae == NO_AUTOENCODER:
        folder = None
    else:
        folder = intake.staging / "vae"
        files = [file for file in list_files(Path(str(work.vae)), intake.allowed) if "/" not in file.name]
        _check_size(intake, files)
        _copy(intake, files, folder)
    if folder is None:
        return None
    return load_encoder(folder, intake.device)


def add_features(intake: Intake) -> FeatureCard:
    """Copy the folder of an image model and read its card from the copy."""
    source, roots = _source(intake)
    _copied(intake, lambda: [file for file in list_files(source, roots) if "/" not in file.name])
    card = read_feature_folder(intake.content, intake.work.name, intake.work.licence)
    return card.model_copy(update={"folder": None})


def train(intake: Intake) -> FeatureCard:
    """Train a classifier on a registered data set."""
    work = intake.work
    if work.dataset is None:
        raise ValueError(f"{work.name} is to be trained on no data set")
    card = train_classifier(
        load_dataset(work.dataset.name),
        intake.content,
        work.train or TrainSettings(),
        intake.progress,
        intake.progress.stopped,
        name=work.name,
        device=intake.device,
    )
    return card.model_copy(update={"licence": work.licence, "folder": None})


def _source(intake: Intake) -> tuple[Path, Roots | None]:
    """Return the source folder and the roots that must hold its files (None for the lab's own download)."""
    work = intake.work
    if work.hub is not None:
        to, progress = intake.staging / HUB, intake.progress
        checkpoints = work.what == "backbone"
        folder = download(work.hub, to, progress, work.max_bytes, progress.stopped, checkpoints)
        return folder / (work.hub.file or ""), None
    return Path(str(work.path)), intake.allowed


def _copied(intake: Intake, listed: Callable[[], list[SourceFile]]) -> None:
    """Copy the listed files. Raises BadInput if listing them again gives others."""
    files = listed()
    _check_size(intake, files)
    _forget_others(intake.content, files)
    _copy(intake, files, intake.content)
    try:
        after = listed()
    except ValueError as error:
        raise BadInput("the folder changed while it was read; nothing was registered") from error
    check_same(files, after)


def _copy(intake: Intake, files: Sequence[SourceFile], to: Path) -> None:
    """Copy files into a folder; files that the lab downloaded itself are linked instead of copied."""

    def tell(done: int, total: int) -> None:
        intake.progress(done, total, f"copied to {to.name}")

    downloaded = Path(os.path.realpath(intake.staging / HUB))
    own = [file for file in files if Path(file.path).is_relative_to(downloaded)]
    others = [file for file in files if file not in own]
    for part, roots in ((own, None), (others, intake.allowed)):
        if part and not copy_files(part, to, roots, tell, intake.progress.stopped):
            raise StopRequested


def _check_size(intake: Intake, files: Sequence[SourceFile]) -> None:
    size, most = sum(file.size for file in files), intake.work.max_bytes
    if most is not None and size > most:
        raise BadInput(f"its files have {size:,} bytes; its owner may register {most:,} more")


def _forget_others(content: Path, files: Sequence[SourceFile]) -> None:
    """Delete copies, made by an earlier attempt, of files that the source no longer has."""
    names = {file.name for file in files}
    for file in list(content.rglob("*")) if content.is_dir() else []:
        if file.is_file() and file.relative_to(content).as_posix() not in names:
            file.unlink()

"""What is registered, from its source to a card: each maker fills `content` and checks what it has filled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

from grafting_core.specs.backbone import BackboneCard, HeldOutImages, card_of
from grafting_core.specs.datasets import DATASETS, DatasetCard
from grafting_core.specs.features import FeatureCard
from grafting_core.specs.registration import NO_AUTOENCODER, RegistrationSpec, TrainSettings
from grafting_core.storage.folders import CONTENT
from grafting_core.training.observer import StopRequested
from workers.stages.hub import download
from workers.stages.intake import BadInput, Roots, SourceFile, check_links, check_same, copy_files, list_files

Card = BackboneCard | DatasetCard | FeatureCard
PARTS = ("transformer", "vae", "autoencoder", "scheduler", "text_encoder", "tokenizer")
"""Folders of a pipeline that belong to a backbone."""
AUTOENCODERS = ("vae", "autoencoder")


class Progress(Protocol):
    """How far a phase is, and whether the work should end."""

    def __call__(self, done: int, total: int, what: str) -> None: ...

    def stopped(self) -> bool: ...


@dataclass(frozen=True)
class Intake:
    """One registration on its way in."""

    work: RegistrationSpec
    staging: Path
    allowed: Roots
    progress: Progress

    @property
    def content(self) -> Path:
        """What will be published."""
        return self.staging / CONTENT


def add_backbone(intake: Intake) -> BackboneCard:
    """Copy a pipeline's folder, and read its card from the copy."""
    work = intake.work
    _copied(intake, lambda: _files_of_backbone(intake))
    read = resolve_name("grafting_core.backbones.registered:read_card")
    vae = NO_AUTOENCODER if work.vae == NO_AUTOENCODER else None
    card: BackboneCard = read(
        intake.content,
        name=work.name,
        dataset=work.trained_on,
        vae=vae,
        licence=work.licence,
        objective=work.objective,
        progress=intake.progress,
    )
    return _with_data(card)


def _with_data(card: BackboneCard) -> BackboneCard:
    """With the numbers of the data set that it names, where that was registered."""
    entry = DATASETS.entries.get(card.dataset or "")
    if entry is None or entry.card is None:
        return card
    data = entry.card
    unseen = HeldOutImages(images=data.held_out, digest=data.digest) if data.held_out else None
    return card.model_copy(update={"num_images": data.training, "held_out": unseen})


def _files_of_backbone(intake: Intake) -> list[SourceFile]:
    """Of the parts that belong to a backbone; the autoencoder's from where `vae` says."""
    source, roots = _source(intake)
    work = intake.work
    parts = [part for part in PARTS if work.vae is None or part not in AUTOENCODERS]
    files = [
        file
        for file in list_files(source, roots)
        if file.name.partition("/")[0] in parts or file.name == "model_index.json"
    ]
    if work.vae not in (None, NO_AUTOENCODER):
        own = list_files(Path(str(work.vae)), intake.allowed)
        files += [
            SourceFile(file.path, f"vae/{file.name}", file.size, file.changed, file.inode)
            for file in own
            if "/" not in file.name
        ]
    if not any(file.name == "transformer/config.json" for file in files):
        raise BadInput(f"{source} has no transformer/config.json, which diffusers' save_pretrained writes")
    return files


def add_dataset(intake: Intake) -> DatasetCard:
    """Copy an encoded folder, and verify the copy."""
    source, roots = _source(intake)
    _copied(intake, lambda: list_files(source, roots))
    return _read_dataset(intake)


def _read_dataset(intake: Intake) -> DatasetCard:
    card: DatasetCard = resolve_name("grafting_core.data.latent_folder:read_dataset")(intake.content)
    licence = intake.work.licence or card.licence
    return card.model_copy(update={"name": intake.work.name, "licence": licence, "folder": None})


def encode(intake: Intake) -> DatasetCard:
    """Encode images into the lab's own folder; a stopped attempt's shards stay for the next."""
    work = intake.work
    source, _ = _source(intake)
    check_links(source, intake.allowed)
    function = resolve_name("grafting_core.data.encode:encode_folder")
    try:
        function(
            source,
            intake.content,
            work.encode,
            _autoencoder(intake),
            intake.progress,
            intake.progress.stopped,
        )
    except FileNotFoundError as error:
        raise BadInput(f"{error.filename} is gone; nothing was registered") from error
    return _read_dataset(intake)


def _autoencoder(intake: Intake) -> Any:
    """What encodes: a folder of diffusers' AutoencoderKL, a loaded one, or None for pixels."""
    work = intake.work
    if work.encoder is None:
        if work.vae == NO_AUTOENCODER:
            return None
        folder = intake.staging / "vae"
        files = list_files(Path(str(work.vae)), intake.allowed)
        _copy(intake, [file for file in files if "/" not in file.name], folder)
        return folder
    card = card_of(work.encoder)
    if card.autoencoder == NO_AUTOENCODER:
        return None
    folders = [Path(str(card.weights)) / name for name in AUTOENCODERS]
    return next(folder for folder in folders if folder.is_dir())


def add_features(intake: Intake) -> FeatureCard:
    """Copy an image model's folder, and read its card from the copy."""
    source, roots = _source(intake)
    _copied(intake, lambda: [file for file in list_files(source, roots) if "/" not in file.name])
    read = resolve_name("grafting_core.evaluation.features.image_models:read_feature_folder")
    card: FeatureCard = read(intake.content, intake.work.name, intake.work.licence)
    return card


def train(intake: Intake) -> FeatureCard:
    """Train a classifier on a registered data set."""
    work = intake.work
    assert work.dataset is not None
    entry = DATASETS.find(work.dataset.name)
    dataset = entry.loader(entry.card)
    function = resolve_name("grafting_core.evaluation.features.train:train_classifier")
    settings = work.train or TrainSettings()
    card: FeatureCard = function(dataset, intake.content, settings, intake.progress, intake.progress.stopped)
    return card.model_copy(update={"name": work.name, "licence": work.licence, "folder": None})


def _source(intake: Intake) -> tuple[Path, Roots | None]:
    """The folder to read from, and under which roots its files have to be (None: it is our own download)."""
    work = intake.work
    if work.hub is not None:
        return download(work.hub, intake.staging / "hub", intake.progress), None
    return Path(str(work.path)), intake.allowed


def _copied(intake: Intake, listed: Callable[[], list[SourceFile]]) -> None:
    """Copy what is listed, and see that the same is listed afterwards."""
    files = listed()
    _check_size(intake, files)
    _forget_others(intake.content, files)
    _copy(intake, files, intake.content)
    check_same(files, listed())


def _copy(intake: Intake, files: Sequence[SourceFile], to: Path) -> None:
    roots = None if intake.work.hub is not None else intake.allowed

    def tell(done: int, total: int) -> None:
        intake.progress(done, total, f"copied to {to.name}")

    if not copy_files(files, to, roots, tell, intake.progress.stopped):
        raise StopRequested


def _check_size(intake: Intake, files: Sequence[SourceFile]) -> None:
    size, most = sum(file.size for file in files), intake.work.max_bytes
    if most is not None and size > most:
        raise BadInput(f"its files have {size:,} bytes; its owner may register {most:,} more")


def _forget_others(content: Path, files: Sequence[SourceFile]) -> None:
    """Remove what an earlier attempt has copied of files that are not there any more."""
    names = {file.name for file in files}
    for file in list(content.rglob("*")) if content.is_dir() else []:
        if file.is_file() and file.relative_to(content).as_posix() not in names:
            file.unlink()

"""The documents by which people register backbones, data sets and feature networks."""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import Field, ValidationError

from grafting_core.specs.backbone import revisions_of
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.datasets import DATASETS
from grafting_core.specs.documents.errors import Problem, SpecError, pointer, shown
from grafting_core.specs.documents.explain import nearest, refused
from grafting_core.specs.documents.lookup import find_card
from grafting_core.specs.documents.parsing import check_plain
from grafting_core.specs.encoding import EncodeSettings
from grafting_core.specs.experiment import Resources
from grafting_core.specs.naming import Word
from grafting_core.specs.plugins import PluginTable
from grafting_core.specs.registration import (
    CHECKPOINTS,
    TABLES,
    FolderPath,
    HubSource,
    Licence,
    RegisteredName,
    RegistrationSpec,
    TrainSettings,
    What,
)

D = TypeVar("D", bound=Frozen)
RESERVED = ("/profile", "/verify")
"""Ends of names that would be addresses of something else."""
HubText = Annotated[str, Field(max_length=400)]
MaxBytes = Annotated[int, Field(ge=1, lt=2**63)] | None
"""Bytes that it may have, reserved of its owner's quota until it is registered; None: all that are left."""


class BackboneDocument(Frozen):
    """A folder as diffusers saves a pipeline with a DiT, on the lab's machine or at the hub.

    Or a checkpoint of the original DiT's code, or of a graft of it: a file that ends in .pt, .pth or .ckpt.
    It holds neither an autoencoder nor a licence, so both are to be given.
    """

    name: RegisteredName
    path: FolderPath | None = None
    hub: HubText | None = None
    """`REPO@REVISION` of the Hugging Face hub; downloaded because it is named here."""
    file: HubText | None = None
    """A checkpoint in that repository; left out, one is taken only if the repository holds nothing else."""
    another_revision: bool = False
    """Whether the name may be that of a backbone from elsewhere, whose next revision this becomes."""
    dataset: Word | None = None
    """The data set that it was trained on."""
    vae: FolderPath | None = None
    """Folder of its autoencoder, or `none`; if left out, the one in the transformer's pipeline."""
    objective: Word | None = None
    licence: Licence | None = None
    private: bool = False
    max_bytes: MaxBytes = None
    budget: Budget = Budget()
    resources: Resources = Resources()


class DatasetDocument(Frozen):
    """A folder that `graft dataset encode` has written, or images to be encoded with `encode`."""

    name: RegisteredName
    path: FolderPath | None = None
    """Of an encoded data set."""
    images: FolderPath | None = None
    """Folder of images, tar or parquet, to be encoded."""
    backbone: Word | None = None
    """Whose autoencoder encodes them."""
    vae: FolderPath | None = None
    """Folder of the autoencoder that encodes them, or `none`: pixels."""
    encode: Annotated[dict[str, Any], Field(max_length=50)] = {}
    """Settings of the encoding: `image_size`, `held_out`, `labels_file` and so on."""
    licence: Licence | None = None
    private: bool = False
    max_bytes: MaxBytes = None
    budget: Budget = Budget()
    resources: Resources = Resources()


class FeaturesDocument(Frozen):
    """A folder of a transformers or timm image model, or a data set on which a classifier is trained."""

    name: RegisteredName
    path: FolderPath | None = None
    hub: HubText | None = None
    dataset: Word | None = None
    """What a small classifier is trained on."""
    train: TrainSettings | None = None
    licence: Licence | None = None
    private: bool = False
    max_bytes: MaxBytes = None
    budget: Budget = Budget()
    resources: Resources = Resources()


def parse_backbone(document: Any) -> RegistrationSpec:
    """Validate a plain document and resolve the names in it. Raises SpecError naming what is wrong."""
    asked = _read(document, BackboneDocument)
    _one_of(asked, "path", "hub")
    data = None if asked.dataset is None else _known(DATASETS, asked.dataset, "/dataset").card
    fields = {"name", "path", "vae", "objective", "licence", "private", "another_revision"}
    given = asked.model_dump(include=fields)
    if asked.file is not None:
        _check_file(asked)
    if (asked.path or asked.file or "").endswith(CHECKPOINTS):
        _check_checkpoint(asked)
    named = {"trained_on": asked.dataset, "dataset": data.ref if data else None}
    return _spec("backbone", asked, given | named | {"hub": _hub(asked.hub, asked.file)})


def _check_file(asked: BackboneDocument) -> None:
    """Raises SpecError for a file outside a repository, and for one that is no checkpoint."""
    if asked.hub is None:
        _refuse("/file", "without-effect", "file goes with hub; a path names its file itself", asked.file)
    if not str(asked.file).endswith(CHECKPOINTS):
        message = f"file names a checkpoint, which ends in {', '.join(CHECKPOINTS)}; leave it out for others"
        _refuse("/file", "bad-source", message, asked.file)


def _check_checkpoint(asked: BackboneDocument) -> None:
    """Raises SpecError naming everything that a checkpoint lacks and the document does not give."""
    needed = {
        "vae": "a checkpoint has no autoencoder; name the folder of one",
        "licence": "a checkpoint names no licence; give the one that its publisher names",
    }
    problems = [
        Problem(pointer=pointer(field), code="missing-field", message=message)
        for field, message in needed.items()
        if getattr(asked, field) is None
    ]
    if asked.objective is not None:
        message = "objective does not go with a checkpoint, which predicts noise"
        problems.append(Problem(pointer="/objective", code="without-effect", message=message))
    if problems:
        raise SpecError(problems)


def parse_dataset(document: Any) -> RegistrationSpec:
    """As `parse_backbone`."""
    asked = _read(document, DatasetDocument)
    _one_of(asked, "path", "images")
    given = asked.model_dump(include={"name", "licence", "private"})
    if asked.path is not None:
        _without(asked, "path", ("backbone", "vae", "encode"))
        return _spec("dataset", asked, given | {"path": asked.path})
    _one_of(asked, "backbone", "vae")
    encoder = find_card(asked.backbone) if asked.backbone else None
    if encoder is not None and not revisions_of(encoder.name):
        message = f"{encoder.name} was not registered with this lab; name its autoencoder's folder as vae"
        _refuse("/backbone", "not-registered", message, encoder.name)
    settings = _settings(asked)
    encoding = {
        "path": asked.images,
        "vae": asked.vae,
        "encoder": encoder and encoder.ref,
        "encode": settings,
    }
    return _spec("dataset", asked, given | encoding | {"action": "encode"})


def _settings(asked: DatasetDocument) -> EncodeSettings:
    named = asked.encode | {"name": asked.name} | ({"licence": asked.licence} if asked.licence else {})
    try:
        return EncodeSettings.model_validate_json(json.dumps(named))
    except ValidationError as error:
        told = refused(error, named, EncodeSettings)
        raise SpecError([_inside("/encode", each) for each in told.problems], told.left_out) from error


def _inside(place: str, each: Problem) -> Problem:
    return each.model_copy(update={"pointer": place + each.pointer})


def parse_features(document: Any) -> RegistrationSpec:
    """As `parse_backbone`."""
    asked = _read(document, FeaturesDocument)
    _one_of(asked, "path", "hub", "dataset")
    given = asked.model_dump(include={"name", "path", "licence", "private"})
    if asked.dataset is None:
        _without(asked, "path" if asked.path else "hub", ("train",))
        return _spec("features", asked, given | {"hub": _hub(asked.hub)})
    row = _known(DATASETS, asked.dataset, "/dataset")
    if row.card is None:
        _refuse(
            "/dataset", "not-registered", f"{asked.dataset} was not registered with this lab", asked.dataset
        )
    training = {"dataset": row.card.ref, "train": asked.train or TrainSettings()}
    return _spec("features", asked, given | training | {"action": "train"})


DOCUMENTS: Mapping[What, type[Frozen]] = {
    "backbone": BackboneDocument,
    "dataset": DatasetDocument,
    "features": FeaturesDocument,
}
PARSERS: Mapping[What, Callable[[Any], RegistrationSpec]] = {
    "backbone": parse_backbone,
    "dataset": parse_dataset,
    "features": parse_features,
}


def _read(document: Any, model: type[D]) -> D:
    check_plain(document)
    try:
        return model.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise refused(error, document, model) from error


def _spec(
    what: What, asked: BackboneDocument | DatasetDocument | FeaturesDocument, given: dict[str, Any]
) -> RegistrationSpec:
    """Raises SpecError for a name that a package has, and for several workers."""
    table = TABLES[what]
    if table.ships(asked.name):
        _refuse("/name", "taken", f"the name {asked.name} is that of a {table.what} of a package", asked.name)
    if asked.name.endswith(RESERVED):
        _refuse("/name", "taken", f"a name does not end in {' or '.join(RESERVED)}", asked.name)
    if asked.resources.workers != 1:
        message = "one process registers; ask for more CPUs a worker instead"
        _refuse("/resources/workers", "out-of-range", message, asked.resources.workers)
    limits = asked.model_dump(include={"max_bytes"})
    return RegistrationSpec(what=what, budget=asked.budget, resources=asked.resources, **given, **limits)


def _known(table: PluginTable[Any], name: str, place: str) -> Any:
    if name not in table:
        message = f"unknown {table.what} {shown(name)}{nearest(name, table.entries)}"
        _refuse(place, "unknown-name", message, name, tuple(table.entries))
    return table.entries[name]


def _one_of(asked: Frozen, *fields: str) -> None:
    given = [field for field in fields if getattr(asked, field) is not None]
    if len(given) != 1:
        named = f"{' and '.join(given)} are given" if given else "none is given"
        _refuse(pointer(*given[1:2]), "one-of", f"name one of {', '.join(fields)}; {named}", given)


def _without(asked: Frozen, reason: str, fields: tuple[str, ...]) -> None:
    extra = [field for field in fields if getattr(asked, field)]
    if extra:
        _refuse(pointer(extra[0]), "without-effect", f"{extra[0]} does not go with {reason}", reason)


def _hub(text: str | None, file: str | None = None) -> HubSource | None:
    if text is None:
        return None
    repository, _, revision = text.partition("@")
    try:
        return HubSource(repository=repository, revision=revision, file=file)
    except ValidationError:
        message = "write OWNER/REPOSITORY@REVISION, the revision a commit, tag or branch"
        _refuse("/hub", "bad-source", message, text)


def _refuse(place: str, code: str, message: str, given: Any, allowed: tuple[str, ...] = ()) -> NoReturn:
    raise SpecError([Problem(pointer=place, code=code, message=message, given=shown(given), allowed=allowed)])

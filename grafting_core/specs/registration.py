"""Registering: a backbone, a data set or a feature network becomes the lab's own copy, verified."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from grafting_core.specs.backbone import BACKBONES, BackboneCard, BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.canonical import digest, fields_of
from grafting_core.specs.datasets import DATASETS, DatasetCard, DatasetRef
from grafting_core.specs.encoding import EncodeSettings
from grafting_core.specs.experiment import Resources
from grafting_core.specs.features import FEATURE_NETWORKS, FeatureCard
from grafting_core.specs.plugins import PluginTable
from grafting_core.specs.private_names import Replaced

What = Literal["backbone", "dataset", "features"]
Action = Literal["add", "encode", "train", "verify"]
KINDS: tuple[What, ...] = ("backbone", "dataset", "features")
TABLES: Mapping[What, PluginTable[Any]] = {
    "backbone": BACKBONES,
    "dataset": DATASETS,
    "features": FEATURE_NETWORKS,
}
RegisteredName = Annotated[
    str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")
]
"""`flags`, `ann/dit-flags`: letters, digits and `._-`, with one slash at most."""
Licence = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[ -~]+$")]
FolderPath = Annotated[str, Field(min_length=1, max_length=4096)]
CHECKPOINTS = (".pt", ".pth", ".ckpt")
"""Ends of a path that is a checkpoint of the original DiT's code or of one of its grafts, not a folder."""
NO_AUTOENCODER = "none"
"""In the place of an autoencoder's folder: the transformer works on pixels."""


class HubSource(Frozen):
    """A repository of the Hugging Face hub at one revision, downloaded because somebody ordered it."""

    added: ClassVar[frozenset[str]] = frozenset({"file"})
    repository: Annotated[str, Field(max_length=200, pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(max_length=200, pattern=r"^[\w./-]+$")]
    file: Annotated[str, Field(min_length=1, max_length=400)] | None = None
    """A checkpoint in it, where that alone is taken."""


class TrainSettings(Frozen):
    """How a small classifier is trained on a data set's own classes."""

    steps: Annotated[int, Field(ge=1, le=10**7)] = 2000
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class RegistrationSpec(Frozen):
    """One registration, carried out on the cluster. `name` is that of what is registered.

    add: the files of a folder. encode: images become a data set. train: a data set gets a classifier.
    verify: the lab's own copy of the revision `subject` is read again.
    """

    kind: Literal["registration"] = "registration"
    what: What
    action: Action = "add"
    name: RegisteredName
    path: FolderPath | None = None
    hub: HubSource | None = None
    subject: str | None = None
    vae: FolderPath | None = None
    """Folder of the autoencoder, or `none`; None: the one in the transformer's pipeline."""
    encoder: BackboneRef | None = None
    """Whose autoencoder encodes the images."""
    dataset: DatasetRef | None = None
    """What a classifier is trained on, or a backbone was, where that is registered."""
    trained_on: Annotated[str, Field(max_length=200), Replaced("data set")] | None = None
    """Name of the data set that a backbone was trained on."""
    objective: Annotated[str, Field(max_length=100)] | None = None
    """Row of the table of objectives; None: what its files say."""
    licence: Licence | None = None
    private: bool = False
    encode: EncodeSettings | None = None
    train: TrainSettings | None = None
    max_bytes: Annotated[int, Field(ge=0)] | None = None
    """What its owner may still register."""
    another_revision: bool = False
    """Whether it may become a revision of a name that was made in another way, or of another checkpoint."""
    budget: Budget = Budget()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _check(self) -> Self:
        sources = [each for each in (self.path, self.hub) if each is not None]
        if self.action in ("add", "encode") and len(sources) != 1:
            raise ValueError("name one source: a path, or a repository of the hub")
        if self.action == "train" and (self.what != "features" or self.dataset is None):
            raise ValueError("a feature network is trained on a data set")
        if self.action == "encode" and self.what != "dataset":
            raise ValueError("images are encoded to a data set")
        return self

    @property
    def is_checkpoint(self) -> bool:
        """Whether a backbone is made of a file as the original DiT's code writes it.

        Of a repository without a named file this is seen once it is downloaded.
        """
        return self.what == "backbone" and str(self.source_file).endswith(CHECKPOINTS)

    @property
    def source_file(self) -> str | None:
        """The path, or the file of a repository; None where a whole repository is taken."""
        return self.path or (self.hub.file if self.hub else None)

    @property
    def backbone(self) -> BackboneRef:
        """Empty: no backbone's compute is used."""
        return BackboneRef(name="", digest="")

    @property
    def digest(self) -> str:
        """Names what is to be registered from where."""
        asked = fields_of(self, exclude={"budget", "resources", "max_bytes", "another_revision"})
        return digest({"registration": asked})


class Registered(Frozen):
    """What a registration yielded: the card of the kind that was registered, and the bytes of its files."""

    what: What
    backbone: BackboneCard | None = None
    dataset: DatasetCard | None = None
    features: FeatureCard | None = None
    size: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def of(cls, card: BackboneCard | DatasetCard | FeatureCard, size: int) -> "Registered":
        if isinstance(card, BackboneCard):
            return cls(what="backbone", backbone=card, size=size)
        if isinstance(card, DatasetCard):
            return cls(what="dataset", dataset=card, size=size)
        return cls(what="features", features=card, size=size)

    @property
    def card(self) -> BackboneCard | DatasetCard | FeatureCard:
        """Raises ValueError where there is none."""
        for card in (self.backbone, self.dataset, self.features):
            if card is not None:
                return card
        raise ValueError(f"a {self.what} was registered without a card")


class Registry(Frozen):
    """Cards of what a piece of work names, older revisions of a name before newer ones."""

    backbones: tuple[BackboneCard, ...] = ()
    datasets: tuple[DatasetCard, ...] = ()
    features: tuple[FeatureCard, ...] = ()


def registry_folder(what: What, digest: str) -> str:
    """Where a revision is, relative to the storage root: its files in `content`, and `card.json`."""
    return f"registry/{what if what == 'features' else f'{what}s'}/{digest}"


CONTENT = "content"

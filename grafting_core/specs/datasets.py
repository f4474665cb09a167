"""Table of data sets: training images of backbones, and references for their samples."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from grafting_core.specs.base import Frozen
from grafting_core.specs.plugins import API_VERSION, Entry, PluginTable
from grafting_core.specs.private_names import DatasetName, Replaced


class DatasetRef(Frozen):
    """A data set by name and the digest of its files."""

    name: Annotated[str, Field(max_length=200), Replaced("data set")]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$", max_length=64)]


class DatasetCard(Frozen):
    """Card of a folder of shards, written by `graft dataset encode`.

    `shape` is (channels, height, width) of one sample: of its latents, or of its pixels if `autoencoder` is
    None.
    """

    name: DatasetName
    digest: str
    """SHA-256 over the index, which names the SHA-256 of every shard."""
    shape: tuple[int, int, int]
    image_size: tuple[int, int]
    """Height and width of the images; the folder also has those of the reference set."""
    channels: Literal[1, 3] = 3
    training: Annotated[int, Field(ge=1)]
    held_out: Annotated[int, Field(ge=0)]
    """Numbers of training samples and of samples held out from training."""
    conditions: Literal["labels", "none"] = "labels"
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of their labels; empty without labels."""
    autoencoder: str | None = None
    """SHA-256 of the autoencoder that encoded the samples; None for pixels."""
    scale: float = 1.0
    shift: float = 0.0
    """Latents are (mean - shift) * scale."""
    size: Annotated[int, Field(ge=0)] = 0
    """Bytes of all files."""
    licence: str | None = None
    folder: str | None = None
    """Path on this machine; None if only the card is known."""

    @property
    def ref(self) -> DatasetRef:
        return DatasetRef(name=self.name, digest=self.digest)


class DatasetEntry(Entry):
    """Table row; `load` names a function that returns a `data.datasets.Dataset`.

    It is called with the card, or without arguments if the data set ships with a package and has no card.
    """

    card: DatasetCard | None = None


DATASETS = PluginTable("data set", "graftlab.datasets", DatasetEntry, {})


def register_datasets(cards: Iterable[DatasetCard]) -> None:
    """Make registered data sets known to this process, older revisions of a name before newer ones."""
    DATASETS.register({card.name: _registered(card) for card in cards})


def _registered(card: DatasetCard) -> DatasetEntry:
    return DatasetEntry(
        api=API_VERSION, card=card, load="grafting_core.data.latent_folder:load_latent_folder"
    )

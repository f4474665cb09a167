"""Settings of encoding a data set, and the index of the folder that an encoding writes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from grafting_core.specs.base import Frozen
from grafting_core.specs.features import Sha256
from grafting_core.specs.naming import Name
from grafting_core.specs.plans import Seed

Conditions = Literal["labels", "none"]
Values = Literal["moments", "samples", "pixels"]
Share = Annotated[int, Field(ge=0, le=10**9)] | Annotated[float, Field(ge=0, lt=1)]
"""A number of samples, or a share of them below 1."""


class EncodeSettings(Frozen):
    """How a folder, tar or parquet of images becomes a data set under `name`.

    Every image is cropped to its centre square and resized as ADM's training code does. `held_out` samples
    are kept apart from all training, by `seed` and in the proportions of the classes; so are the `reference`
    images that an encoded data set keeps beside its latents (one of pixels keeps all). Files depend on the
    images and on these settings alone.
    """

    name: Name
    image_size: Annotated[int, Field(ge=4, le=2048)] = 256
    channels: Literal[1, 3] = 3
    """1: images are reduced to luma."""
    conditions: Conditions = "labels"
    """`none`: labels are not looked for."""
    labels_file: Annotated[str, Field(max_length=200)] | None = None
    """A `.csv` or `.json` inside a folder of images; None: the first folder of a path is its class."""
    classes: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    """Names in the order of their labels; empty: those that are found, in order."""
    held_out: Share = 0.05
    reference: Annotated[int, Field(ge=2, le=1_000_000)] = 50_000
    flip: bool = False
    """Mirror every training image with a chance of one half, drawn once."""
    values: Literal["moments", "samples"] = "moments"
    """What is kept of a latent's posterior: mean and standard deviation, or one sample."""
    shard_rows: Annotated[int, Field(ge=1, le=65_536)] = 1024
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Of the autoencoder's forwards; it changes the low bits."""
    seed: Seed = 0
    licence: Annotated[str, Field(max_length=200)] | None = None


class ShardFile(Frozen):
    """One file of safetensors in the data set's folder."""

    file: Annotated[str, Field(pattern=r"^\w[\w.-]*\.safetensors$", max_length=200)]
    rows: Annotated[int, Field(ge=1)]
    sha256: Sha256
    size: Annotated[int, Field(ge=1)]
    """Bytes."""


Side = Annotated[int, Field(ge=1, le=65_536)]
Shards = tuple[ShardFile, ...]


class DatasetIndex(Frozen):
    """`index.json`: what the shards hold, so that its SHA-256 names the data set.

    `moments` have the tensors `mean` and `std`, `samples` have `latents` (float32 [n, C, h, w], scaled),
    `pixels` have `images` (uint8 [n, H, W, C]); each has `labels` (int64 [n]) beside them where there are
    classes. `reference` and `held_out_images` are the images of encoded samples; pixels need none.
    """

    format: Literal[1] = 1
    values: Values
    shape: tuple[Side, Side, Side]
    image_size: tuple[Side, Side]
    channels: Literal[1, 3]
    conditions: Conditions
    classes: tuple[str, ...] = ()
    autoencoder: Sha256 | None = None
    scale: float = 1.0
    shift: float = 0.0
    training: Annotated[Shards, Field(min_length=1)]
    held_out: Shards = ()
    reference: Shards = ()
    held_out_images: Shards = ()
    notes: dict[str, int] = {}
    """What was done to images on the way in -> to how many."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.values == "pixels") != (self.autoencoder is None):
            raise ValueError("latents name the digest of their autoencoder, and pixels none")
        if self.values == "pixels" and self.shape != (self.channels, *self.image_size):
            raise ValueError(f"pixels of {self.channels} x {self.image_size} have no shape {self.shape}")
        if (self.values == "pixels") != (not self.reference):
            raise ValueError("latents have reference images beside them, and pixels none")
        if (self.conditions == "labels") != bool(self.classes):
            raise ValueError("a data set with labels names its classes, and one without labels none")
        names = [shard.file for shard in self.shards]
        if len(names) != len(set(names)):
            raise ValueError("a shard is named twice")
        return self

    @property
    def shards(self) -> Shards:
        return self.training + self.held_out + self.reference + self.held_out_images

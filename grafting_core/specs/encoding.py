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
MAX_BATCH_BYTES = 2**30


class EncodeSettings(Frozen):
    """Settings by which images become the data set `name`.

    Each image is cropped to its centre square and resized as in ADM's training code. `held_out` samples are
    kept out of training; they are drawn by `seed` in the proportions of the classes. So are the `reference`
    images that are stored with latents; a data set of pixels needs none. The files depend on the images and
    these settings only.
    """

    name: Name
    image_size: Annotated[int, Field(ge=4, le=2048)] = 256
    channels: Literal[1, 3] = 3
    """1: images are converted to gray."""
    conditions: Conditions = "labels"
    """`none`: labels are ignored."""
    labels_file: Annotated[str, Field(max_length=200)] | None = None
    """A `.csv` or `.json` in the folder of images; None: the first folder of an image's path is its class."""
    classes: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=100_000)
    ] = ()
    """Names in the order of their labels; by default those found, in alphabetical order."""
    held_out: Share = 0.05
    reference: Annotated[int, Field(ge=2, le=1_000_000)] = 50_000
    flip: bool = False
    """Mirror each training image with probability one half, drawn once."""
    values: Literal["moments", "samples"] = "moments"
    """Store mean and standard deviation of each latent's posterior, or one sample of it."""
    shard_rows: Annotated[int, Field(ge=1, le=65_536)] = 1024
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Batch size of the autoencoder, which changes the low bits of the latents."""
    seed: Seed = 0
    licence: Annotated[str, Field(max_length=200)] | None = None

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        size = self.batch_size * self.image_size**2 * self.channels
        if size > MAX_BATCH_BYTES:
            raise ValueError(
                f"a batch of {self.batch_size} images of {self.image_size} x {self.image_size} has {size:,} "
                f"bytes; set a batch_size with at most {MAX_BATCH_BYTES:,}"
            )
        return self


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
    """`index.json`: content and digests of the shards; its own SHA-256 identifies the data set.

    Shards of `moments` have the tensors `mean` and `std`, those of `samples` have `latents` (scaled float32
    [n, C, h, w]), those of `pixels` have `images` (uint8 [n, H, W, C]). With classes all have `labels` (int64
    [n]). `reference` and `held_out_images` are images of encoded samples; pixels need none.
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
    """How images were converted -> the number of images."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.values == "pixels") != (self.autoencoder is None):
            raise ValueError("latents need the digest of their autoencoder, and pixels have none")
        if self.values == "pixels" and self.shape != (self.channels, *self.image_size):
            raise ValueError(f"pixels of {self.channels} x {self.image_size} have no shape {self.shape}")
        if (self.values == "pixels") != (not self.reference):
            raise ValueError("latents need reference images, and pixels have none")
        if (self.conditions == "labels") != bool(self.classes):
            raise ValueError("a data set with labels needs classes, and one without labels has none")
        names = [shard.file for shard in self.shards]
        if len(names) != len(set(names)):
            raise ValueError("a shard is named twice")
        return self

    @property
    def shards(self) -> Shards:
        return self.training + self.held_out + self.reference + self.held_out_images

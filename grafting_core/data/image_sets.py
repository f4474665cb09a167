"""Sets of images for evaluation: sample files in ADM's format and folders, streamed with size limits."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from grafting_core.data.image_files import REPORTED_EVERY, ImageFolder, check_extent
from grafting_core.data.images import Images
from grafting_core.data.npz import BadFile, NpzFile


class ImageSet(Protocol):
    """Equal-sized uint8 RGB images in a fixed order."""

    name: str
    count: int
    size: tuple[int, int]

    def batches(self, rows: int) -> Iterator[Images]:
        """[n, H, W, 3] in order. Raises BadFile if one cannot be read."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings, complete once the images have been read."""


class IndexedImages(ImageSet, Protocol):
    """Images with random access, which training needs."""

    channels: int
    """1 for gray images, whose three colours are equal."""

    def rows(self, indices: npt.NDArray[np.int64]) -> Images:
        """[n, H, W, 3] in the order of the indices."""


class SampleFile:
    """`arr_0` of an `.npz` in ADM's format, uint8 [N, H, W, 3], from any project."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.name, path
        with NpzFile(path) as arrays:
            self.extra = tuple(name for name in arrays.names if name != "arr_0")
            member = arrays.member("arr_0")
        if member.dtype != np.uint8 or len(member.shape) != 4 or member.shape[3] != 3:
            shape = " x ".join(str(side) for side in member.shape)
            raise BadFile(f"{path} has {member.dtype} {shape} at 'arr_0'; uint8 N x H x W x 3 is needed")
        self.count, self.size = member.shape[0], member.shape[1:3]
        check_extent(path, self.count, self.size)

    def batches(self, rows: int) -> Iterator[Images]:
        with NpzFile(self.path) as arrays:
            yield from arrays.batches("arr_0", rows)

    @property
    def notes(self) -> tuple[str, ...]:
        """ADM's evaluator ignores the images of a file that has its own statistics."""
        if "mu" not in self.extra:
            return ()
        return (f"{self.name} has 'mu', which ADM's evaluator would use; its images were evaluated instead",)


class ArrayImages:
    """Images in memory, gray [N, H, W] or with channels [N, H, W, C], C of 1 or 3."""

    def __init__(self, name: str, images: Images) -> None:
        self.name, self.images = name, images
        self.count, self.size = len(images), (images.shape[1], images.shape[2])
        self.channels = 3 if images.ndim == 4 and images.shape[3] == 3 else 1

    def batches(self, rows: int) -> Iterator[Images]:
        for start in range(0, self.count, rows):
            yield in_three_channels(self.images[start : start + rows])

    def rows(self, indices: npt.NDArray[np.int64]) -> Images:
        return in_three_channels(self.images[indices])

    @property
    def notes(self) -> tuple[str, ...]:
        return ()


def in_three_channels(images: Images) -> Images:
    """[n, H, W] or [n, H, W, C] with C of 1 or 3 -> [n, H, W, 3]."""
    channels = images[..., None] if images.ndim == 3 else images
    return channels if channels.shape[3] == 3 else np.repeat(channels, 3, axis=3)


def reported(images: ImageSet, rows: int) -> Iterator[Images]:
    """The batches of a set, with a line on stderr for every 5,000 images."""
    done = 0
    for batch in images.batches(rows):
        yield batch
        before, done = done, done + len(batch)
        if done // REPORTED_EVERY > before // REPORTED_EVERY:
            print(f"read {done} of {images.count} images of {images.name}", file=sys.stderr)


def open_images(path: Path) -> ImageSet:
    """A sample file or a folder of images. Raises BadFile for anything else."""
    if path.is_dir():
        return ImageFolder(path)
    if not path.exists():
        raise BadFile(f"{path} does not exist")
    if path.suffix != ".npz":
        raise BadFile(f"{path} is neither an .npz file nor a folder of images")
    return SampleFile(path)


class PixelDigest:
    """SHA-256 over shape and pixels of a set, updated batch by batch."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._count = 0

    def update(self, batch: Images) -> None:
        self._hash.update(f"{batch.shape[1:]}".encode() if not self._count else b"")
        self._hash.update(np.ascontiguousarray(batch).tobytes())
        self._count += len(batch)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

"""Interface of sources of images, and their limits."""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from PIL import Image

from grafting_core.data.image_files import MAX_IMAGES
from grafting_core.data.npz import BadFile

MAX_SIDE = 16_384
"""Larger than for evaluated images, as photographs are cropped; Pillow also limits the pixels of an image."""
MAX_COUNT = 20 * MAX_IMAGES


class ImageSource(Protocol):
    """Images in a fixed order, listed before any of them is decoded."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the images, for messages."""

    @property
    def labels(self) -> Sequence[int]:
        """Label of each image, from 0; empty without labels."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their labels; empty without labels."""

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        """Open an image after checking its header. Raises BadFile naming it."""

    def fingerprint(self) -> str:
        """Digest of the names, sizes and modification times of all files."""


def fingerprint_of(files: Iterable[tuple[str, Path]]) -> str:
    hashed = hashlib.sha256()
    for name, file in files:
        try:
            stat = file.lstat()
        except OSError as error:
            raise BadFile(f"{file} changed while it was read ({error.strerror})") from error
        hashed.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return hashed.hexdigest()


def check_count(where: Path, count: int) -> None:
    if count < 2:
        raise BadFile(f"{where} has {count} images; 2 to {MAX_COUNT} are supported")
    check_most(where, count)


def check_most(where: Path, count: int) -> None:
    """Raise BadFile for more images than are supported; called before they are listed."""
    if count > MAX_COUNT:
        raise BadFile(f"{where} has {count} images; 2 to {MAX_COUNT} are supported")

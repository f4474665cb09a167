"""Sets of images to be judged: sample files in ADM's format and folders of pictures, streamed and bounded."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from grafting_core.features.base import Images
from grafting_core.npz import BadFile, NpzFile

MAX_IMAGES = 1_000_000
MAX_SIDE = 2_048
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


class ImageSet(Protocol):
    """Equal-sized uint8 RGB images in a fixed order."""

    name: str
    count: int
    size: tuple[int, int]

    def batches(self, rows: int) -> Iterator[Images]:
        """[n, H, W, 3] in order. Raises BadFile where one cannot be read."""


class SampleFile:
    """`arr_0` of an `.npz`, uint8 [N, H, W, 3], as ADM's evaluator takes it; of any project."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.name, path
        with NpzFile(path) as arrays:
            self.extra = tuple(name for name in arrays.names if name != "arr_0")
            member = arrays.member("arr_0")
        if member.dtype != np.uint8 or len(member.shape) != 4 or member.shape[3] != 3:
            shape = " x ".join(str(side) for side in member.shape)
            raise BadFile(f"{path} holds {member.dtype} {shape} at 'arr_0'; uint8 N x H x W x 3 is needed")
        self.count, self.size = member.shape[0], member.shape[1:3]
        _check_extent(path, self.count, self.size)

    def batches(self, rows: int) -> Iterator[Images]:
        with NpzFile(self.path) as arrays:
            yield from arrays.batches("arr_0", rows)


class ImageFolder:
    """Pictures of a folder and its subfolders in the order of their paths; links out of it are left alone."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.name, path
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in FORMATS)
        self.files = [file for file in found if _stays_inside(file, path)]
        if not self.files:
            raise BadFile(f"{path} holds no pictures; {', '.join(FORMATS)} are read")
        self.count = len(self.files)
        with _opened(self.files[0]) as first:
            self.size = (first.height, first.width)
        _check_extent(path, self.count, self.size)

    def batches(self, rows: int) -> Iterator[Images]:
        for start in range(0, self.count, rows):
            yield np.stack([self._read(file) for file in self.files[start : start + rows]])

    def _read(self, file: Path) -> Images:
        with _opened(file) as picture:
            if (picture.height, picture.width) != self.size:
                had = f"{picture.width} x {picture.height}"
                raise BadFile(f"{file} is {had}, {self.files[0].name} is {self.size[1]} x {self.size[0]}")
            return np.asarray(picture.convert("RGB"))


class ArrayImages:
    """Images in memory, gray [N, H, W] or RGB [N, H, W, 3]."""

    def __init__(self, name: str, images: Images) -> None:
        self.name, self.images = name, images
        self.count, self.size = len(images), (images.shape[1], images.shape[2])

    def batches(self, rows: int) -> Iterator[Images]:
        for start in range(0, self.count, rows):
            part = self.images[start : start + rows]
            yield part if part.ndim == 4 else np.repeat(part[..., None], 3, axis=3)


def open_images(path: Path) -> ImageSet:
    """A sample file or a folder of pictures. Raises BadFile for anything else."""
    if path.is_dir():
        return ImageFolder(path)
    if path.suffix != ".npz":
        raise BadFile(f"{path} is neither an .npz file nor a folder of pictures")
    return SampleFile(path)


def _stays_inside(file: Path, folder: Path) -> bool:
    return file.is_file() and file.resolve().is_relative_to(folder.resolve())


def _check_extent(path: Path, count: int, size: tuple[int, int]) -> None:
    if count < 2 or count > MAX_IMAGES:
        raise BadFile(f"{path} holds {count} images; 2 to {MAX_IMAGES} can be judged")
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise BadFile(f"{path} holds images of {size[1]} x {size[0]}; sides up to {MAX_SIDE} are read")


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Only the header is read until size and format are known to be what the name says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=[FORMATS[file.suffix.lower()]]) as picture:
                if max(picture.size) > MAX_SIDE:
                    sides = f"{picture.width} x {picture.height}"
                    raise BadFile(f"{file} is {sides}; sides up to {MAX_SIDE} are read")
                yield ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        raise BadFile(f"{file} is no {FORMATS[file.suffix.lower()]} picture") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadFile(f"{file} is too large a picture ({error})") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"{file} cannot be read as a picture ({error})") from error


class PixelDigest:
    """SHA-256 over shape and pixels of a set, fed as its batches pass by."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._count = 0

    def take(self, batch: Images) -> None:
        self._hash.update(f"{batch.shape[1:]}".encode() if not self._count else b"")
        self._hash.update(np.ascontiguousarray(batch).tobytes())
        self._count += len(batch)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

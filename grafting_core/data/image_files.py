"""Folders of image files: which files are read, which are skipped and why; every image as 8-bit RGB."""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from grafting_core.data.images import Images
from grafting_core.data.npz import BadFile
from grafting_core.data.opening import ALL_FILES, Access

MAX_IMAGES = 1_000_000
MAX_SIDE = 2_048
MAX_FILE_BYTES = 2**28
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
PLAIN = {"1", "L", "RGB", "P"}
WITH_ALPHA = {"LA", "PA", "RGBA"}
SIXTEEN = {"I;16", "I;16B", "I;16L"}
NAMED = 10
REPORTED_EVERY = 5_000


class ImageFolder:
    """Images of a folder and its subfolders in the order of their paths. Raises BadFile with all unreadable
    files, from their headers, before any image is decoded.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.name, path
        self.files, self.passed_over = find_pictures(path)
        if not self.files:
            besides = f"; skipped: {counted_files(self.passed_over)}" if self.passed_over else ""
            raise BadFile(f"{path} has no images in the formats {', '.join(FORMATS)}{besides}")
        self.count = len(self.files)
        self._changed: dict[str, set[Path]] = {}
        self.size = self._check_headers()
        check_extent(path, self.count, self.size)

    def batches(self, rows: int) -> Iterator[Images]:
        for start in range(0, self.count, rows):
            yield np.stack([self._read(file) for file in self.files[start : start + rows]])

    @property
    def notes(self) -> tuple[str, ...]:
        """Skipped files, and numbers of images that were converted, among those read so far."""
        over = [f"{self.path} has files that were skipped: {counted_files(self.passed_over)}"]
        changed = [f"{len(files)} of {self.count} pictures {what}" for what, files in self._changed.items()]
        return (*(over if self.passed_over else ()), *changed)

    def _check_headers(self) -> tuple[int, int]:
        sizes: dict[Path, tuple[int, int]] = {}
        wrong: list[str] = []
        for number, file in enumerate(self.files, 1):
            try:
                with opened(file) as picture:
                    sizes[file] = _upright_size(picture)
            except BadFile as error:
                wrong.append(str(error))
            if number % REPORTED_EVERY == 0:
                print(f"checked {number} of {self.count} pictures", file=sys.stderr)
        common = Counter(sizes.values()).most_common(1)
        size = common[0][0] if common else (0, 0)
        shown = f"{size[1]} x {size[0]} like most"
        wrong += [f"{file} is {w} x {h}, not {shown}" for file, (h, w) in sizes.items() if (h, w) != size]
        if wrong:
            more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
            raise BadFile(f"{len(wrong)} of {self.count} pictures: {'; '.join(wrong[:NAMED])}{more}")
        return size

    def _read(self, file: Path) -> Images:
        with opened(file) as picture:
            pixels, notes = upright_rgb(picture)
        for what in notes:
            self._changed.setdefault(what, set()).add(file)
        return pixels


def find_pictures(folder: Path, access: Access = ALL_FILES) -> tuple[list[Path], Counter[str]]:
    """Images in the order of their paths, and numbers of skipped files by reason."""
    found, over = list[Path](), Counter[str]()
    for root, names, files in access.walk(folder):
        inside = root.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            over["in hidden folders"] += len(files)
            continue
        over["links to folders"] += sum(
            (root / name).is_symlink() for name in names if not name.startswith(".")
        )
        for file in (root / name for name in files):
            why = _why_not(file)
            if why is None:
                found.append(file)
            else:
                over[why] += 1
    return sorted(found), +over


def _why_not(file: Path) -> str | None:
    if file.name.startswith("."):
        return "hidden files"
    if file.suffix.lower() not in FORMATS:
        return f"{file.suffix.lower() or 'without a suffix'}, which is not supported"
    # A link may lead anywhere, and to an image that is counted already.
    return "links" if file.is_symlink() else None


def counted_files(over: Counter[str]) -> str:
    shown = [f"{count} {why}" for why, count in over.most_common(NAMED)]
    rest = sum(over.values()) - sum(count for _, count in over.most_common(NAMED))
    return "; ".join([*shown, f"{rest} others"] if rest else shown)


def check_extent(path: Path, count: int, size: tuple[int, int]) -> None:
    """Raise BadFile for a number or a size of images that is not supported."""
    if count < 2 or count > MAX_IMAGES:
        raise BadFile(f"{path} has {count} images; 2 to {MAX_IMAGES} are supported")
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise BadFile(f"{path} has images of {size[1]} x {size[0]}; sides up to {MAX_SIDE} are supported")


def upright_rgb(picture: Image.Image) -> tuple[Images, list[str]]:
    """An opened image as 8-bit RGB [H, W, 3], and how it was converted."""
    notes: list[str] = []
    upright = ImageOps.exif_transpose(picture)
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        notes.append("were turned upright by their EXIF orientation")
    if picture.mode in SIXTEEN:
        return _eight_bits(upright), [*notes, "of 16 bits were scaled to 8"]
    if picture.mode not in WITH_ALPHA and "transparency" not in picture.info:
        return np.asarray(upright.convert("RGB")), notes
    pixels = np.asarray(upright.convert("RGBA"))
    if pixels[..., 3].min() < 255:
        notes.append("have transparent pixels; alpha was dropped and the colours kept")
    return np.ascontiguousarray(pixels[..., :3]), notes


@contextmanager
def opened(
    file: Path, content: IO[bytes] | None = None, max_side: int = MAX_SIDE, access: Access = ALL_FILES
) -> Iterator[Image.Image]:
    """Open an image; its pixels are decoded only after the header is checked. Raises BadFile.

    `content` holds the bytes if they are not in a file of their own; `file` then only names them, and a name
    without a known suffix allows every supported format.
    """
    named = FORMATS.get(file.suffix.lower())
    kinds = [named] if named else sorted(set(FORMATS.values()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with content or access.open(file) as stream:
                _check_size(file, stream)
                with Image.open(stream, formats=kinds) as picture:
                    _check_header(file, picture, max_side)
                    yield picture
    except UnidentifiedImageError as error:
        raise BadFile(f"{file} is not a {' or '.join(kinds)} image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadFile(f"{file} is too large an image ({error})") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"{file} cannot be read as an image ({error})") from error


def _check_size(file: Path, stream: IO[bytes]) -> None:
    """Raise BadFile for more bytes than an image has: some decoders read the whole file."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if size > MAX_FILE_BYTES:
        raise BadFile(f"{file} has {size} bytes; images of up to {MAX_FILE_BYTES} are supported")


def _check_header(file: Path, picture: Image.Image, max_side: int) -> None:
    if max(picture.size) > max_side:
        raise BadFile(f"{file} is {picture.width} x {picture.height}; sides up to {max_side} are supported")
    if picture.mode not in PLAIN | WITH_ALPHA | SIXTEEN:
        raise BadFile(f"{file} has the mode {picture.mode}; save it as 8-bit gray or RGB")
    # Pillow reads 16-bit colours by cutting off their low bytes.
    tiles = getattr(picture, "tile", None)
    stored = str(tiles[0][3]) if tiles else ""
    if picture.mode not in SIXTEEN and ";16" in stored:
        raise BadFile(f"{file} has 16 bits per colour; save it with 8, or as 16-bit gray")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        raise BadFile(f"{file} is an animation of {frames} images; save one of them")


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """Height and width after applying the EXIF orientation; 5 to 8 swap them."""
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def _eight_bits(picture: Image.Image) -> Images:
    wide = np.asarray(picture).astype(np.uint32)
    gray = ((wide * 255 + 32_767) // 65_535).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)

"""Tars in webdataset's format."""

import io
import json
import tarfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from grafting_core.data.image_files import FORMATS, MAX_FILE_BYTES, opened
from grafting_core.data.labels import Label, numbered
from grafting_core.data.npz import BadFile
from grafting_core.data.opening import ALL_FILES, Access
from grafting_core.data.sources.base import MAX_SIDE, check_count, check_most, fingerprint_of
from grafting_core.specs.encoding import EncodeSettings

MAX_HEADER_BYTES = 2**22


@dataclass(frozen=True)
class _Member:
    """Position of an image in a tar."""

    file: Path
    offset: int
    size: int


class TarSource:
    """Uncompressed tars in webdataset's format.

    Files with the same name up to the first dot are one sample: an image, and its label as `.cls`, or in
    `.json` under `label` or `cls`.
    """

    def __init__(self, files: Sequence[Path], settings: EncodeSettings, access: Access = ALL_FILES) -> None:
        self.files, self._access = files, access
        self.names, self._members, labels = list[str](), list[_Member](), list[Label]()
        for file in files:
            self._read(file, settings, labels)
        check_count(files[0], len(self.names))
        self.labels, self.classes = list[int](), tuple[str, ...]()
        if settings.conditions == "labels":
            self.labels, self.classes = numbered(labels, settings.classes, self.names)

    def _read(self, file: Path, settings: EncodeSettings, labels: list[Label]) -> None:
        images, found = dict[str, tuple[str, _Member]](), dict[str, Label]()
        try:
            with self._access.open(file) as content, _opened(content) as archive:
                while (member := archive.next()) is not None:
                    # tarfile keeps every header that it has read.
                    archive.members.clear()  # type: ignore[attr-defined]
                    if not member.isfile():
                        continue
                    folder, _, base = member.name.rpartition("/")
                    stem, _, suffix = base.partition(".")
                    key, kind = f"{folder}/{stem}", f".{suffix.lower().rpartition('.')[2]}"
                    if kind in FORMATS:
                        if key in images:
                            raise BadFile(f"{file} has two images of the sample {key.lstrip('/')}")
                        place = _Member(file, member.offset_data, member.size)
                        images[key] = (f"{file.name}/{member.name}", place)
                        check_most(file, len(self.names) + len(images))
                    elif kind in (".cls", ".json") and settings.conditions == "labels":
                        _note_label(file, archive, member, found, key)
        except (tarfile.TarError, OSError, EOFError, OverflowError) as error:
            raise BadFile(f"{file} cannot be read as an uncompressed tar ({error})") from error
        for key, (name, place) in images.items():
            self.names.append(name)
            self._members.append(place)
            if settings.conditions == "labels":
                if key not in found:
                    raise BadFile(f"{name} has no label: a .cls file, or `label` in a .json file")
                labels.append(found[key])

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        place = self._members[index]
        if place.size > MAX_FILE_BYTES:
            raise BadFile(f"{self.names[index]} has {place.size} bytes; up to {MAX_FILE_BYTES} are supported")
        with self._access.open(place.file) as archive:
            archive.seek(place.offset)
            content = archive.read(place.size)
        return opened(Path(self.names[index]), io.BytesIO(content), MAX_SIDE)

    def fingerprint(self) -> str:
        return fingerprint_of((file.name, file) for file in self.files)


def _opened(content: BinaryIO) -> tarfile.TarFile:
    bounded = _BoundedReads(io.FileIO(content.fileno(), closefd=False))
    return tarfile.open(fileobj=bounded, mode="r:")


class _BoundedReads(io.BufferedReader):
    """A file that refuses to read large pieces: a header of a tar may name any size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _note_label(
    file: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, found: dict[str, Label], key: str
) -> None:
    content = archive.extractfile(member)
    raw = content.read(2**20) if content is not None else b""
    try:
        text = raw.decode()
        if member.name.lower().endswith(".cls"):
            found[key] = int(text) if text.strip().lstrip("-").isdecimal() else text.strip()
            return
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{file.name}/{member.name} holds no label ({str(error)[:100]})") from error
    named = document if isinstance(document, dict) else {}
    label = named.get("label", named.get("cls"))
    if isinstance(label, str | int) and not isinstance(label, bool):
        found.setdefault(key, label)

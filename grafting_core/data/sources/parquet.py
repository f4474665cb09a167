"""Parquet files of encoded images."""

import io
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from grafting_core.data.image_files import opened
from grafting_core.data.labels import Label, numbered
from grafting_core.data.npz import BadFile
from grafting_core.data.sources.base import MAX_FILE_BYTES, MAX_SIDE, check_count, fingerprint_of
from grafting_core.specs.encoding import EncodeSettings

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "jpg", "png", "bytes"), ("label", "labels", "cls", "class")


class ParquetSource:
    """Parquet files with a column of encoded images and one of labels.

    Images are binary, or a struct with `bytes` as in Hugging Face's data sets.
    """

    def __init__(self, files: Sequence[Path], settings: EncodeSettings) -> None:
        self.files = files
        self._parquet = _pyarrow_parquet()
        self.names, self._groups, labels = list[str](), list[tuple[int, int, int]](), list[Label]()
        self._held: tuple[tuple[int, int] | None, list[Any]] = (None, [])
        classes = tuple(settings.classes)
        for number, file in enumerate(files):
            table = self._opened(file)
            self._image = _column(file, table.schema_arrow.names, IMAGE_COLUMNS, "images")
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                start = len(self.names)
                self._groups += [(number, group, row) for row in range(rows)]
                self.names += [f"{file.name} row {len(self._groups) - rows + row}" for row in range(rows)]
                if settings.conditions == "labels":
                    labels += self._labels(file, table, group, self.names[start:])
            if settings.conditions == "labels":
                classes = classes or _declared_classes(table)
        check_count(files[0], len(self.names))
        self.labels, self.classes = list[int](), tuple[str, ...]()
        if settings.conditions == "labels":
            self.labels, self.classes = numbered(labels, classes, self.names)

    def _opened(self, file: Path) -> Any:
        try:
            return self._parquet.ParquetFile(file)
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise BadFile(f"{file} cannot be read as parquet: {str(error)[:200]}") from error

    def _labels(self, file: Path, table: Any, group: int, names: Sequence[str]) -> list[Label]:
        column = _column(file, table.schema_arrow.names, LABEL_COLUMNS, "labels")
        values: list[Any] = table.read_row_group(group, columns=[column]).column(0).to_pylist()
        for value, name in zip(values, names, strict=True):
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise BadFile(f"{name} has the label {value!r}; a whole number or a name is needed")
        return values

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        number, group, row = self._groups[index]
        if self._held[0] != (number, group):
            table = self._opened(self.files[number]).read_row_group(group, columns=[self._image])
            self._held = ((number, group), table.column(0).to_pylist())
        value = self._held[1][row]
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes) or len(content) > MAX_FILE_BYTES:
            raise BadFile(f"{self.names[index]} has no image of up to {MAX_FILE_BYTES} bytes")
        return opened(Path(self.names[index]), io.BytesIO(content), MAX_SIDE)

    def fingerprint(self) -> str:
        return fingerprint_of((file.name, file) for file in self.files)


def _pyarrow_parquet() -> Any:
    try:
        # An optional dependency, needed for parquet files only.
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise BadFile("parquet files need pyarrow: pip install 'graftlab[parquet]'") from error


def _column(file: Path, names: Sequence[str], known: Sequence[str], what: str) -> str:
    found = [name for name in known if name in names]
    if not found:
        raise BadFile(f"{file} has no column of {what} ({', '.join(known)}); it has {', '.join(names)[:300]}")
    return found[0]


def _declared_classes(table: Any) -> tuple[str, ...]:
    """Names of the classes in the schema of a Hugging Face data set; empty if there are none."""
    raw = (table.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(raw).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return ()
    for name in LABEL_COLUMNS:
        declared = features.get(name) if isinstance(features, dict) else None
        names = declared.get("names") if isinstance(declared, dict) else None
        if isinstance(names, list) and all(isinstance(each, str) for each in names):
            return tuple(names)
    return ()

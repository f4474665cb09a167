"""Parquet files of encoded images."""

import io
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, overload

from PIL import Image

from grafting_core.data.image_files import MAX_FILE_BYTES, opened
from grafting_core.data.labels import Label, numbered
from grafting_core.data.npz import BadFile
from grafting_core.data.opening import ALL_FILES, Access
from grafting_core.data.sources.base import (
    MAX_SIDE,
    check_count,
    check_most,
    fingerprint_of,
)
from grafting_core.specs.encoding import EncodeSettings

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "jpg", "png", "bytes"), ("label", "labels", "cls", "class")
BUFFER_BYTES = 2**20
IMAGE_ROWS, LABEL_ROWS = 8, 4096
"""Rows decoded at once. A small file may repeat one large value in any number of rows."""
MAX_LABEL_BYTES = 200


@dataclass(frozen=True)
class _Group:
    """A row group: its file, its number in the file, and the source's first index in it."""

    file: int
    number: int
    first: int


class _RowNames(Sequence[str]):
    """Names of all rows, made when they are needed."""

    def __init__(self, source: "ParquetSource") -> None:
        self._source = source

    def __len__(self) -> int:
        return self._source.count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return f"{self._source.files[self._source.group_of(index).file].name} row {index}"


class ParquetSource:
    """Parquet files with a column of encoded images and one of labels, the same in all files.

    Images are binary, or a struct with `bytes` as in Hugging Face's data sets. Their rows are counted before
    any is read, and read a few at a time.
    """

    def __init__(self, files: Sequence[Path], settings: EncodeSettings, access: Access = ALL_FILES) -> None:
        self.files, self._access = files, access
        self._parquet = _pyarrow_parquet()
        self._groups, self.count = list[_Group](), 0
        labelled = settings.conditions == "labels"
        first = self._layout(files[0], labelled)
        for number, file in enumerate(files):
            layout = self._layout(file, labelled)
            _check_same(files[0], first, file, layout, with_classes=not settings.classes)
            self._count_rows(number)
        self._image = first.image
        self.names: Sequence[str] = _RowNames(self)
        check_count(files[0], self.count)
        self._reading: tuple[_Group, int, Iterator[Any]] | None = None
        self.labels, self.classes = list[int](), tuple[str, ...]()
        if labelled:
            labels = [label for number in range(len(files)) for label in self._labels(number, first.label)]
            self.labels, self.classes = numbered(labels, settings.classes or first.classes, self.names)

    def group_of(self, index: int) -> _Group:
        """Row group of an image."""
        return self._groups[bisect_right(self._groups, index, key=lambda group: group.first) - 1]

    def _count_rows(self, number: int) -> None:
        file = self.files[number]
        with self._access.open(file) as content:
            metadata = self._opened(file, content).metadata
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                if rows:
                    self._groups.append(_Group(number, group, self.count))
                self.count += rows
                check_most(file, self.count)

    def _layout(self, file: Path, labelled: bool) -> "_Layout":
        with self._access.open(file) as content:
            schema = self._opened(file, content).schema_arrow
        image = _column(file, schema.names, IMAGE_COLUMNS, "images")
        if not labelled:
            return _Layout(image)
        label = _column(file, schema.names, LABEL_COLUMNS, "labels")
        return _Layout(image, label, _declared_classes(schema, label))

    def _opened(self, file: Path, content: Any, **options: Any) -> Any:
        try:
            return self._parquet.ParquetFile(content, buffer_size=BUFFER_BYTES, **options)
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise _unreadable(file, error) from error

    def _labels(self, number: int, column: str) -> Iterator[Label]:
        """Labels of one file. Raises BadFile for anything but whole numbers and short names."""
        file = self.files[number]
        index = next((group.first for group in self._groups if group.file == number), 0)
        with self._access.open(file) as content:
            # Equal names are kept once, however often they occur.
            table = self._opened(file, content, read_dictionary=[column])
            for values in _batches(file, table, column, LABEL_ROWS):
                for value in _label_values(values):
                    if not isinstance(value, str | int) or isinstance(value, bool):
                        problem = f"the label {value!r:.100}; a whole number or a name is needed"
                        raise BadFile(f"{self.names[index]} has {problem}")
                    yield value
                    index += 1

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        value = self._value(index)
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(encoded, bytes) or len(encoded) > MAX_FILE_BYTES:
            raise BadFile(f"{self.names[index]} has no image of up to {MAX_FILE_BYTES} bytes")
        return opened(Path(self.names[index]), io.BytesIO(encoded), MAX_SIDE)

    def _value(self, index: int) -> Any:
        """Value of a row; later rows of the same group are read on from there."""
        group = self.group_of(index)
        if self._reading is None or self._reading[0] != group or self._reading[1] > index:
            self._reading = (group, group.first, self._values(group))
        _, place, values = self._reading
        for value in values:
            place += 1
            if place > index:
                self._reading = (group, place, values)
                return value
        raise BadFile(f"{self.files[group.file]} has fewer rows than it says")

    def _values(self, group: _Group) -> Iterator[Any]:
        file = self.files[group.file]
        with self._access.open(file) as content:
            table = self._opened(file, content)
            for values in _batches(file, table, self._image, IMAGE_ROWS, [group.number]):
                for value in values:
                    yield value.as_py()

    def fingerprint(self) -> str:
        return fingerprint_of((file.name, file) for file in self.files)


@dataclass(frozen=True)
class _Layout:
    """Columns of a file, and the names of the classes in its schema."""

    image: str
    label: str = ""
    classes: tuple[str, ...] = ()


def _check_same(first: Path, one: _Layout, file: Path, two: _Layout, with_classes: bool) -> None:
    """Raise BadFile naming both files if their columns or classes differ."""
    if (one.image, one.label) != (two.image, two.label):
        columns = [", ".join(filter(None, (layout.image, layout.label))) for layout in (one, two)]
        raise BadFile(f"{first} has the columns {columns[0]}, but {file} has {columns[1]}; use the same")
    if with_classes and one.classes != two.classes:
        named = [", ".join(layout.classes[:10]) or "none" for layout in (one, two)]
        raise BadFile(
            f"{first} names the classes {named[0]}, but {file} names {named[1]}; their labels would mean "
            "different classes"
        )


def _batches(
    file: Path, table: Any, column: str, rows: int, groups: Sequence[int] | None = None
) -> Iterator[Any]:
    try:
        for batch in table.iter_batches(rows, row_groups=groups, columns=[column], use_threads=False):
            yield batch.column(0)
    except (OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, BadFile):
            raise
        raise _unreadable(file, error) from error


def _label_values(values: Any) -> Iterator[Any]:
    """Values of a column; one that is stored as a dictionary is decoded once."""
    if not hasattr(values, "dictionary"):
        yield from values.to_pylist()
        return
    if any(size > MAX_LABEL_BYTES for size in _sizes(values.dictionary)):
        raise BadFile(f"a label has more than {MAX_LABEL_BYTES} bytes")
    known = values.dictionary.to_pylist()
    yield from (None if place is None else known[place] for place in values.indices.to_pylist())


def _sizes(values: Any) -> Iterator[int]:
    compute = import_module("pyarrow.compute")
    yield from (size or 0 for size in compute.binary_length(values).to_pylist())


def _unreadable(file: Path, error: Exception) -> BadFile:
    return BadFile(f"{file} cannot be read as parquet: {str(error)[:200]}")


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


def _declared_classes(schema: Any, label: str) -> tuple[str, ...]:
    """Names of the classes in the schema of a Hugging Face data set; empty if there are none."""
    raw = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(raw).get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError):
        return ()
    declared = features.get(label) if isinstance(features, dict) else None
    names = declared.get("names") if isinstance(declared, dict) else None
    if isinstance(names, list) and all(isinstance(each, str) for each in names):
        return tuple(names)
    return ()

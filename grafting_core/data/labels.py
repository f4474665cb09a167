"""Labels of images, given by names or numbers, and files that contain them."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from grafting_core.data.npz import BadFile
from grafting_core.data.opening import ALL_FILES, Access

MAX_CLASSES = 100_000
MAX_LABEL_BYTES = 2**28
Label = str | int


def numbered(
    labels: Sequence[Label], classes: Sequence[str], names: Sequence[str]
) -> tuple[list[int], tuple[str, ...]]:
    """Labels as numbers from 0, and the names of the classes.

    Names are numbered in the order of `classes`, by default in alphabetical order (or by value, if they are
    numbers); numbers are not changed. Raises BadFile naming the first image of `names` whose label is not
    among the classes.
    """
    if all(isinstance(label, int) for label in labels):
        return _checked([int(label) for label in labels], classes, names)
    known = tuple(classes) or tuple(sorted({str(label) for label in labels}, key=_place))
    places = {name: place for place, name in enumerate(known)}
    for label, name in zip(labels, names, strict=True):
        if str(label) not in places:
            raise BadFile(f"{name} has the class {label!r}; the classes are {_listed(known)}")
    return [places[str(label)] for label in labels], known


def _place(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isascii() and name.isdecimal() else (10**9, name)


def _checked(
    labels: list[int], classes: Sequence[str], names: Sequence[str]
) -> tuple[list[int], tuple[str, ...]]:
    most = len(classes) or MAX_CLASSES
    for label, name in zip(labels, names, strict=True):
        if not 0 <= label < most:
            raise BadFile(f"{name} has the label {label}; there are {most} classes, from 0")
    return labels, tuple(classes) or tuple(str(label) for label in range(max(labels) + 1))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def read_labels(file: Path, access: Access = ALL_FILES) -> dict[str, Label]:
    """Read labels by path of the image, relative to the file's folder.

    A `.csv` file has a header and two columns, file and label. A `.json` file is an object of files and
    labels, or has such pairs under `labels`. Raises BadFile.
    """
    if not file.is_file() or file.is_symlink():
        raise BadFile(f"there is no file of labels {file}")
    with access.open(file) as content:
        size = os.fstat(content.fileno()).st_size
        if size > MAX_LABEL_BYTES:
            raise BadFile(f"{file} has {size} bytes; up to {MAX_LABEL_BYTES} are supported")
        try:
            text = content.read(MAX_LABEL_BYTES).decode("utf-8-sig")
            pairs = _from_csv(text) if file.suffix == ".csv" else _from_json(text)
        except (ValueError, RecursionError, OSError, csv.Error) as error:
            raise BadFile(f"{file} cannot be read as labels: {str(error)[:200]}") from error
    found = dict[str, Label]()
    for name, label in pairs:
        path = str(PurePosixPath(name))
        if path in found:
            raise BadFile(f"{file} names {path} twice")
        found[path] = label
    return found


def _from_csv(text: str) -> list[tuple[str, Label]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    short = next((row for row in rows if len(row) < 2), None)
    if short is not None or len(rows) < 2:
        raise ValueError("every line needs a file and a label, below a first line that names the columns")
    whole = all(row[1].strip().lstrip("-").isdecimal() for row in rows[1:])
    return [(row[0], int(row[1]) if whole else row[1].strip()) for row in rows[1:]]


def _from_json(text: str) -> list[tuple[str, Label]]:
    document = json.loads(text)
    if isinstance(document, Mapping) and isinstance(document.get("labels"), list):
        pairs = document["labels"]
    elif isinstance(document, Mapping):
        pairs = list(document.items())
    else:
        raise ValueError("an object is needed, of files or with pairs of file and label under 'labels'")
    if not all(_is_pair(pair) for pair in pairs):
        raise ValueError("labels are pairs of a file's name and a whole number or a class's name")
    return [(pair[0], pair[1]) for pair in pairs]


def _is_pair(pair: Any) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
        return False
    return isinstance(pair[1], str | int) and not isinstance(pair[1], bool)

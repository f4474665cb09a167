"""Read a document from a file, and report its errors with the file's name."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from grafting_core.specs.documents.errors import SpecError
from grafting_core.specs.documents.parsing import MAX_CHARACTERS, read_document
from service.cli.console import Refused
from service.client import ApiProblem

A = TypeVar("A")
MOST_BYTES = 4 * MAX_CHARACTERS + 8


def read_design(file: Path) -> Any:
    """Return the plain document in a file, or on standard input for `-`. Raises Refused naming the file."""
    try:
        return read_document(_bytes(file).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refused([f"{file}: is not UTF-8 text ({error.reason} at byte {error.start})"]) from error
    except OSError as error:
        raise Refused([f"{file}: {error.strerror}"]) from error
    except SpecError as error:
        raise Refused([f"{file}: {line}" for line in error.lines]) from error


def _bytes(file: Path) -> bytes:
    """Read at most the length limit of a document: the file may be a device or a data set by mistake."""
    if str(file) == "-":
        return sys.stdin.buffer.read(MOST_BYTES)
    with file.open("rb") as opened:
        return opened.read(MOST_BYTES)


def refusing(file: Path, call: Callable[[], A]) -> A:
    """Call `call`; problems of the document are raised as Refused with the file's name."""
    try:
        return call()
    except ApiProblem as problem:
        raise Refused([f"{file}: {line}" for line in problem.lines]) from problem

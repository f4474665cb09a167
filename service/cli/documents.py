"""From a file that the user names to a document, and from complaints about it to lines about that file."""

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
    """The plain document in a file, or on standard input for `-`. Raises Refused naming the file."""
    try:
        return read_document(_bytes(file).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refused([f"{file}: is not UTF-8 text ({error.reason} at byte {error.start})"]) from error
    except OSError as error:
        raise Refused([f"{file}: {error.strerror}"]) from error
    except SpecError as error:
        raise Refused([f"{file}: {line}" for line in error.lines]) from error


def _bytes(file: Path) -> bytes:
    """No more of them than a document may have, for a device or a data set named by mistake."""
    if str(file) == "-":
        return sys.stdin.buffer.read(MOST_BYTES)
    with file.open("rb") as opened:
        return opened.read(MOST_BYTES)


def refusing(file: Path, call: Callable[[], A]) -> A:
    """Problems of a document are told with the file they are in."""
    try:
        return call()
    except ApiProblem as problem:
        raise Refused([f"{file}: {line}" for line in problem.lines]) from problem

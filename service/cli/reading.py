"""From a file that the user names to a document, and from complaints about it to lines about that file."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from grafting_core.spec.document import read_document
from grafting_core.spec.problems import SpecError
from service.cli.console import Refused
from service.client import ApiProblem

A = TypeVar("A")


def read_design(file: Path) -> Any:
    """The plain document in a file, or on standard input for `-`. Raises Refused naming the file."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        return read_document(text)
    except UnicodeDecodeError as error:
        raise Refused([f"{file}: is not UTF-8 text ({error.reason} at byte {error.start})"]) from error
    except OSError as error:
        raise Refused([f"{file}: {error.strerror}"]) from error
    except SpecError as error:
        raise Refused([f"{file}: {problem}" for problem in error.problems]) from error


def refusing(file: Path, call: Callable[[], A]) -> A:
    """Problems of a document are told with the file they are in."""
    try:
        return call()
    except ApiProblem as problem:
        raise Refused([f"{file}: {line}" for line in problem.lines]) from problem

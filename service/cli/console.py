"""Output of the command line: tables and one-line errors for people, JSON for programs."""

import json
import sys
from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, TypeAdapter
from rich import markup
from rich.console import Console
from rich.table import Table

from grafting_core.specs.naming import unseen

T = TypeVar("T")
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation on a terminal.")]
All = Annotated[bool, typer.Option("--all", help="Show every row.")]

WIDTH_ELSEWHERE = 140
"""Width of output to a file or a pipe, which have none of their own."""

out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_ELSEWHERE)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Refused(Exception):
    """Bad input: one readable line per problem, exit code 2."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        super().__init__("; ".join(lines))


def print_json(value: Any) -> None:
    """Print models, lists of them, or plain data as indented JSON on standard output."""
    adapter: TypeAdapter[Any] = TypeAdapter(type(value) if isinstance(value, BaseModel) else Any)
    text = adapter.dump_json(value, indent=2).decode()
    try:
        text.encode(out.encoding)
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=2)
    out.out(text, highlight=False)


def visible(text: str, keep: str = "") -> str:
    """Return the text with invisible and text-reordering characters written as escapes."""
    return "".join(f"\\u{ord(char):04x}" if char not in keep and unseen(char) else char for char in text)


def escape(text: str) -> str:
    """Return text written by others, such as a name, safe to print in a table or a line with markup."""
    return markup.escape(visible(text))


def say(lines: Iterable[str]) -> None:
    """Print plain lines on standard error."""
    err.print("\n".join(visible(line, keep="\n\t") for line in lines), markup=False)


def confirm(question: str, yes: bool) -> None:
    """Ask on a terminal, unless `--yes` was given; without a terminal, go on. Raises typer.Abort on no."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    typer.confirm(question, abort=True, err=True)


def first_of(rows: Iterable[T], limit: int, everything: bool, what: str) -> tuple[list[T], bool]:
    """Return the first `limit` rows, or all of them, and whether there are more.

    If there are more, a line on standard error says so.
    """
    if everything:
        return list(rows), False
    rows_found = list(islice(rows, limit + 1))
    more = len(rows_found) > limit
    if more:
        say([f"the first {limit} {what}; there are more, which --limit N or --all shows"])
    return rows_found[:limit], more


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Build a plain table; the columns named in `right` are right-aligned."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return grid

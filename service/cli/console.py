"""How the command line speaks: tables and one-line errors for people, JSON for programs."""

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
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")]
All = Annotated[bool, typer.Option("--all", help="Every one there is.")]

WIDTH_ELSEWHERE = 140
"""Of output that goes to a file or a pipe, where nothing says how wide it may be."""

out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_ELSEWHERE)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Refused(Exception):
    """Bad input: one readable line a problem, exit code 2."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        super().__init__("; ".join(lines))


def print_json(value: Any) -> None:
    """Models, lists of them, or plain data as indented JSON on standard output."""
    adapter: TypeAdapter[Any] = TypeAdapter(type(value) if isinstance(value, BaseModel) else Any)
    text = adapter.dump_json(value, indent=2).decode()
    try:
        text.encode(out.encoding)
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=2)
    out.out(text, highlight=False)


def visible(text: str, keep: str = "") -> str:
    """The text with characters that hide, turn or move what stands around them written as escapes."""
    return "".join(f"\\u{ord(each):04x}" if each not in keep and unseen(each) else each for each in text)


def escape(text: str) -> str:
    """Text of others, a name for one, as it can stand in a table or a line with markup."""
    return markup.escape(visible(text))


def say(lines: Iterable[str]) -> None:
    """Plain lines on standard error."""
    err.print("\n".join(visible(line, keep="\n\t") for line in lines), markup=False)


def confirm(question: str, yes: bool) -> None:
    """Ask on a terminal, unless `--yes` was given; a script is never asked. Raises typer.Abort on no."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    typer.confirm(question, abort=True, err=True)


def first_of(rows: Iterable[T], limit: int, everything: bool, what: str) -> tuple[list[T], bool]:
    """The first rows, or all of them, and whether there are more, which is said on standard error too."""
    if everything:
        return list(rows), False
    found = list(islice(rows, limit + 1))
    more = len(found) > limit
    if more:
        say([f"the first {limit} {what}; there are more, which --limit N or --all shows"])
    return found[:limit], more


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A plain table; figures are set to the right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return made

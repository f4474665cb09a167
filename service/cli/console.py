"""How the command line speaks: tables and one-line errors for people, JSON for programs."""

import sys
from typing import Any

from pydantic import BaseModel, TypeAdapter
from rich.console import Console
from rich.table import Table

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
    out.out(adapter.dump_json(value, indent=2).decode(), highlight=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A plain table; figures are set to the right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return made


def percent(change: float | None) -> str:
    """+12.3 %, or a dash where there is nothing to compare with."""
    return "-" if change is None else f"{change:+.1%}".replace("%", " %")


def engineering(value: float, unit: str = "") -> str:
    """1.64 M, 268 G: three digits and a prefix."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def duration(seconds: float | None) -> str:
    """1:05, or 1:02:03; a question mark where nobody knows yet."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

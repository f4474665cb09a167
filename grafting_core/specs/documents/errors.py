"""Errors in documents: each with its place, the value that was given and what would be correct."""

from typing import Any

from grafting_core.specs.base import Frozen


class Problem(Frozen):
    """One error. `pointer` is a JSON pointer (RFC 6901) into the document as it was sent."""

    pointer: str
    code: str
    message: str
    given: str | None = None
    allowed: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.pointer or '(document)'}: {self.message}"


MAX_PROBLEMS = 20
"""Number of errors that are reported; a document with thousands of them still gets a readable answer."""


class SpecError(ValueError):
    """A document with errors; `problems` is never empty, `left_out` counts those beyond the first 20."""

    def __init__(self, problems: list[Problem], left_out: int = 0) -> None:
        self.problems = problems[:MAX_PROBLEMS]
        self.left_out = left_out + max(0, len(problems) - MAX_PROBLEMS)
        super().__init__("; ".join(self.lines))

    @property
    def lines(self) -> list[str]:
        """One readable line per error."""
        more = [f"and {self.left_out:,} more"] if self.left_out else []
        return [*map(str, self.problems), *more]


def pointer(*parts: object) -> str:
    """Join path parts to a JSON pointer, escaping `~` and `/`."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def shown(value: Any, limit: int = 200) -> str:
    """A value for display in an error message: shortened, ASCII only."""
    text = repr(value).encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= limit else text[: limit - 3] + "..."

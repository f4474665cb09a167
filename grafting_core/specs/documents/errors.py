"""How a bad document is refused: every problem with its place, what was given and what would be right."""

from typing import Any

from grafting_core.specs.base import Frozen


class Problem(Frozen):
    """One thing wrong. `pointer` is a JSON pointer (RFC 6901) into the document as it was sent."""

    pointer: str
    code: str
    message: str
    given: str | None = None
    allowed: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.pointer or '(document)'}: {self.message}"


MAX_PROBLEMS = 20
"""That are told; a document of thousands of mistakes gets an answer that can be read."""


class SpecError(ValueError):
    """A document that cannot be accepted; `problems` is never empty, `left_out` counts those beyond 20."""

    def __init__(self, problems: list[Problem], left_out: int = 0) -> None:
        self.problems = problems[:MAX_PROBLEMS]
        self.left_out = left_out + max(0, len(problems) - MAX_PROBLEMS)
        super().__init__("; ".join(self.lines))

    @property
    def lines(self) -> list[str]:
        """One readable line a problem."""
        more = [f"and {self.left_out:,} more"] if self.left_out else []
        return [*map(str, self.problems), *more]


def pointer(*parts: object) -> str:
    """Join path parts to a JSON pointer, escaping `~` and `/`."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def shown(value: Any, limit: int = 200) -> str:
    """A value as it may be echoed in an error: short, and safe to encode."""
    text = repr(value).encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= limit else text[: limit - 3] + "..."

"""What the REST API answers about checks of the whole lab; the client parses the same classes."""

from datetime import datetime
from typing import Literal

from grafting_core.specs.base import Frozen
from service.schemas.runs import View, ViolationView

CheckState = Literal["RUNNING", "DONE", "FAILED", "INTERRUPTED"]


class CheckRequest(Frozen):
    """What to look at."""

    quick: bool = False
    """The database and the names of files alone: says nothing about what is in the files."""


class CheckView(View):
    """How far a check is, and what it has found. `sound` is None until it is done."""

    id: str
    quick: bool
    state: CheckState
    step: str
    done: int
    total: int
    """Of the step: `done` of `total`."""
    sound: bool | None
    found: int
    """Violations so far; `violations` are the first thousand of them, once the check has ended."""
    violations: list[ViolationView]
    message: str | None
    created_at: datetime
    ended_at: datetime | None


class CheckPage(View):
    """Newest first, without what they have found."""

    checks: list[CheckView]

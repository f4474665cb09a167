"""Responses and requests of checks of the whole lab; the client parses the same classes."""

from datetime import datetime
from typing import Literal

from grafting_core.specs.base import Frozen
from service.schemas.runs import View, ViolationView

CheckState = Literal["RUNNING", "DONE", "FAILED", "INTERRUPTED"]


class CheckRequest(Frozen):
    """Extent of a check."""

    quick: bool = False
    """Check only the database and the names of files, not their content."""


class CheckView(View):
    """Progress and findings of a check. `sound` is None until it is done."""

    id: str
    quick: bool
    state: CheckState
    step: str
    done: int
    total: int
    """Progress of the step: `done` of `total`."""
    sound: bool | None
    found: int
    """Violations so far; `violations` are the first thousand of them, once the check has ended."""
    violations: list[ViolationView]
    message: str | None
    created_at: datetime
    ended_at: datetime | None


class CheckPage(View):
    """Checks, newest first, without their findings."""

    checks: list[CheckView]

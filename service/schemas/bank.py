"""What the REST API answers about the bank; the client parses the same classes."""

from typing import Annotated

from pydantic import Field

from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Usage
from service.schemas.runs import View


class ScionView(View):
    """One scion as the list shows it; `nmse` is its held-out error, `replace_one` its damage to the noise."""

    key: str
    site: str
    kind: str
    operator: str
    """The kind with the fields that are not its defaults."""
    backbone: str
    nmse: float
    replace_one: float | None = None
    steps: int
    ending: str
    spend: Usage
    size: int
    made_by: str
    made_at: float
    needed_by: str | None = None
    """A run that has not ended."""


class ScionPage(View):
    """In the order of keys; `next_cursor` asks for those beyond."""

    scions: list[ScionView]
    next_cursor: str | None = None


class ScionDamage(View):
    key: str
    problem: str


class Verified(View):
    """How many scions were read, and which were set aside."""

    checked: int
    damaged: list[ScionDamage]


class ClearRequest(Frozen):
    """What may go: what no run has asked for in so many days, and the longest unasked down to a size."""

    older_than_days: Annotated[float, Field(ge=0, le=1e9)] | None = None
    max_bytes: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    dry_run: bool = False


class Cleared(View):
    """What went (or would go), and how many scions stay because runs under way need them."""

    removed: list[str]
    bytes: int
    remains: int
    """Folders without a scion: progress of cancelled runs, divergences, damage."""
    kept_for_runs: int
    dry_run: bool

"""Responses and requests of the bank; the client parses the same classes."""

from typing import Annotated

from pydantic import Field

from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Usage
from service.schemas.names import BackboneName
from service.schemas.runs import View


class ScionView(View):
    """List entry of a scion; `nmse` is its held-out error, `replace_one` its damage to the predicted
    noise. An imported operator has neither, and an origin.
    """

    key: str
    site: str
    kind: str
    operator: str
    """The kind with the fields that differ from its defaults."""
    backbone: BackboneName
    nmse: float | None = None
    replace_one: float | None = None
    steps: int
    ending: str
    spend: Usage
    size: int
    made_by: str
    made_at: float
    needed_by: str | None = None
    """An unfinished run."""
    origin: str | None = None
    """Where an imported operator comes from."""


class ScionPage(View):
    """Scions in the order of keys; `next_cursor` requests those after."""

    scions: list[ScionView]
    next_cursor: str | None = None


class ScionDamage(View):
    key: str
    problem: str


class Verified(View):
    """Number of scions read, and those that were moved aside."""

    checked: int
    damaged: list[ScionDamage]


class ClearRequest(Frozen):
    """Scions to delete: not needed by any run for this many days, and the longest unused down to a size."""

    older_than_days: Annotated[float, Field(ge=0, le=1e9)] | None = None
    max_bytes: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    dry_run: bool = False


class Cleared(View):
    """Scions that were (or would be) deleted, and the numbers of those kept."""

    removed: list[str]
    bytes: int
    remains: int
    """Folders without a scion: progress of cancelled runs, divergences, damage."""
    kept_for_runs: int
    kept_imported: int = 0
    """Imported scions, which nothing makes again, of backbones that are registered."""
    dry_run: bool

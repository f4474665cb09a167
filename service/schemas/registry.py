"""Responses about registered things; the client parses the same classes."""

from datetime import datetime
from typing import Any, Literal

from grafting_core.specs.registration import What
from service.schemas.runs import BackboneView, View


class RevisionView(View):
    """One revision of a name; one that is removed or damaged is listed but cannot be used."""

    revision: int
    digest: str
    size: int
    licence: str | None = None
    state: Literal["ready", "damaged", "removed"]
    run_id: str
    created_at: datetime


class RegisteredView(View):
    """A backbone, data set or feature network, described by its newest revision."""

    what: What
    name: str
    digest: str | None = None
    """None while the first revision is being registered, and for entries of packages without a card."""
    summary: str = ""
    """Sizes as text, such as `12 blocks of 384, 16 x 16 tokens, 10 classes`."""
    shipped: bool = False
    """Whether it ships with a package; then it has no owner and no revisions."""
    owner: str = ""
    private: bool = False
    revision: int | None = None
    damaged: bool = False
    """Whether a check has found other files than were registered; registering it again heals it."""
    size: int = 0
    licence: str | None = None
    registering: str | None = None
    """Id of the run that is registering another revision."""
    figures: dict[str, float] = {}
    created_at: datetime | None = None


class RegisteredDetail(RegisteredView):
    """A registered thing with its card and all revisions, oldest first."""

    card: dict[str, Any] | None = None
    revisions: list[RevisionView] = []


class Removed(View):
    """Numbers of the removed revisions, and the bytes that this freed."""

    name: str
    revisions: list[int]
    bytes: int


OWN = {"name", "digest", "owner", "private", "revision", "damaged", "size", "licence"}


def view_of(backbone: BackboneView) -> RegisteredView:
    """Convert the list entry of a backbone into that of any registered thing."""
    parts = [f"{backbone.depth} blocks of {backbone.width}", f"{backbone.num_tokens} tokens"]
    parts += [] if backbone.arithmetic == "diffusers" else [f"{backbone.arithmetic} arithmetic"]
    parts += [*backbone.grafts, *([] if backbone.runnable else ["plan only"])]
    own = backbone.model_dump(include=OWN)
    return RegisteredView(
        what="backbone",
        summary=", ".join(parts),
        shipped=not backbone.owner,
        registering=backbone.registering,
        figures=backbone.figures,
        **own,
    )

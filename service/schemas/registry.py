"""What the REST API answers about registered things; the client parses the same classes."""

from datetime import datetime
from typing import Any, Literal

from grafting_core.specs.registration import What
from service.schemas.runs import BackboneView, View


class RevisionView(View):
    """One revision of a name; a removed one is listed but cannot be used."""

    revision: int
    digest: str
    size: int
    licence: str | None = None
    state: Literal["ready", "removed"]
    run_id: str
    created_at: datetime


class RegisteredView(View):
    """A backbone, data set or feature network by name, as its newest revision is."""

    what: What
    name: str
    digest: str | None = None
    """None while the first revision is being registered, or where nothing is known without loading it."""
    summary: str = ""
    """Its sizes in words."""
    shipped: bool = False
    """Whether it comes with a package; then it has no owner and no revisions."""
    owner: str = ""
    private: bool = False
    revision: int | None = None
    size: int = 0
    licence: str | None = None
    registering: str | None = None
    """The run that registers another revision."""
    figures: dict[str, float] = {}
    created_at: datetime | None = None


class RegisteredDetail(RegisteredView):
    """The same with its card and all of its revisions, oldest first."""

    card: dict[str, Any] | None = None
    revisions: list[RevisionView] = []


class Removed(View):
    """What was removed, and how many bytes that freed."""

    name: str
    revisions: list[int]
    bytes: int


def view_of(backbone: BackboneView) -> RegisteredView:
    """A line of the list of backbones as all kinds have it."""
    parts = [f"{backbone.depth} blocks of {backbone.width}", f"{backbone.num_tokens} tokens"]
    parts += [] if backbone.arithmetic == "diffusers" else [f"{backbone.arithmetic} arithmetic"]
    parts += [*backbone.grafts, *([] if backbone.runnable else ["plan only"])]
    own = backbone.model_dump(include={"name", "digest", "owner", "private", "revision", "size", "licence"})
    return RegisteredView(
        what="backbone",
        summary=", ".join(parts),
        shipped=not backbone.owner,
        registering=backbone.registering,
        figures=backbone.figures,
        **own,
    )

"""Options shared by many commands, and the client that they select."""

from typing import Annotated

import typer

from service.cli.discovery import find_url
from service.client import GraftlabClient

Url = Annotated[
    str | None, typer.Option("--url", help="The lab's address (else GRAFTLAB_URL, else lab.json).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def connect(url: str | None, timeout: float = 30.0) -> GraftlabClient:
    """Return a client of the lab at `url`, else of the one that `find_url` finds."""
    return GraftlabClient(find_url(url), timeout)

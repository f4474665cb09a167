"""Folders from which an embedded lab registers backbones, data sets and feature networks."""

import json
from contextlib import suppress
from pathlib import Path

from service.direct import LOOPBACK
from service.settings import Settings


def import_roots(settings: Settings) -> list[Path]:
    """Return the folders of the setting; where it is unset, on loopback, the home folder of the lab's user.

    Who registers there with the lab's first key can read those files anyway. A lab that answers to other
    machines registers from nowhere until its operator says from where.
    """
    if "import_roots" in settings.model_fields_set or settings.host not in LOOPBACK:
        return [root.expanduser().absolute() for root in settings.import_roots]
    with suppress(RuntimeError):
        return [Path.home()]
    return []


def as_setting(roots: list[Path]) -> str:
    """Write the folders as the parts of the lab read them."""
    return json.dumps([str(root) for root in roots])

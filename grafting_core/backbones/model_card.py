"""The front matter of a model card: README.md of a folder, as model hubs read it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

README = "README.md"
MARK = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
MOST_BYTES = 1_000_000
MOST, MOST_ORIGIN = 200, 2_000
"""Characters of a fact, and of an origin, which tells of every backbone before."""


def front_matter(folder: Path) -> dict[str, Any]:
    """Fields at the head of a folder's README; none where there is no such file or it cannot be read."""
    file = folder / README
    try:
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            return {}
        found = MARK.match(file.read_text(encoding="utf-8").replace("\r\n", "\n"))
        document = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return document if isinstance(document, dict) else {}


@dataclass(frozen=True)
class StatedFacts:
    """What a folder's model card says of the model; None for what it does not say."""

    licence: str | None = None
    origin: str | None = None
    """Where an exported graft comes from."""
    dataset: str | None = None
    feature_network: str | None = None
    """Data set that it is compared with, and the network that compares, by their names in a lab."""


def stated_facts(folder: Path) -> StatedFacts:
    """Facts of the front matter. Of a licence that has a name of its own, that name is taken."""
    fields = front_matter(folder)
    named = fields.get("license_name") if fields.get("license") == "other" else None
    graft = fields.get("graft")
    own = graft if isinstance(graft, dict) else {}
    return StatedFacts(
        licence=_text(named) or _text(fields.get("license")),
        origin=_text(own.get("origin"), MOST_ORIGIN),
        dataset=_text(own.get("dataset")),
        feature_network=_text(own.get("feature_network")),
    )


def _text(value: Any, most: int = MOST) -> str | None:
    """A line of text; None for anything else."""
    fitting = isinstance(value, str) and value.strip() and len(value) <= most and value.isprintable()
    return str(value).strip() if fitting else None

"""The front matter of a model card: README.md of a folder, as model hubs read it."""

import re
from pathlib import Path
from typing import Any

import yaml

README = "README.md"
MARK = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
MOST_BYTES = 1_000_000


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


def stated_licence(folder: Path) -> str | None:
    """Licence that a folder's model card names; of one that has a name of its own, that name."""
    fields = front_matter(folder)
    named = fields.get("license_name") if fields.get("license") == "other" else None
    return _text(named) or _text(fields.get("license"))


def stated_origin(folder: Path) -> str | None:
    """Where a folder's model card says that an exported graft comes from."""
    graft = front_matter(folder).get("graft")
    return _text(graft.get("origin")) if isinstance(graft, dict) else None


def _text(value: Any) -> str | None:
    """A line of text; None for anything else."""
    fitting = isinstance(value, str) and value.strip() and len(value) <= 200 and value.isprintable()
    return str(value).strip() if fitting else None

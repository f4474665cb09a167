"""Paths on the lab's machine that may be registered: under a root that the lab's operator allows."""

import os
from collections.abc import Sequence
from pathlib import Path

SETTING = "GRAFTLAB_IMPORT_ROOTS"


class PathNotAllowed(ValueError):
    """A path that is not under any of the roots, whatever is there."""


def allowed_path(given: str, roots: Sequence[Path], closed: Sequence[Path] = ()) -> str:
    """Return the path with its links resolved, under a root and not in a closed folder.

    Raises PathNotAllowed.

    The same is said of what is not there and of what may not be read: nobody learns from an answer what
    lies elsewhere on the machine.
    """
    if not roots:
        raise PathNotAllowed(
            f"this lab registers nothing by path; its operator sets {SETTING} to allow folders"
        )
    if not given.startswith("/") or "\0" in given:
        raise PathNotAllowed(f"{given!r} is not an absolute path on the lab's machine")
    resolved = Path(os.path.realpath(given))
    if not _is_in(resolved, roots) or _is_in(resolved, closed):
        named = ", ".join(str(root) for root in roots)
        raise PathNotAllowed(
            f"{given} is not under a folder from which this lab registers: {named} ({SETTING})"
        )
    return str(resolved)


def allowed_file(given: str, roots: Sequence[Path], closed: Sequence[Path] = ()) -> str:
    """Return the path of a file under its own name, also where that is a link, as in caches of model hubs.

    The name and its folder tell what the file is.

    Raises PathNotAllowed as `allowed_path` does, for the link and for what it leads to.
    """
    allowed_path(given, roots, closed)
    folder, name = os.path.split(given)
    return str(Path(allowed_path(folder, roots, closed)) / name)


def _is_in(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(os.path.realpath(folder)) for folder in folders)

"""Temporary folder of a running lab: Ray's sockets, sessions and logs."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

PLACE, PREFIX = Path("/tmp"), "graftlab-"  # noqa: S108 - socket paths have at most 107 characters


def make_scratch() -> Path:
    """Create a new folder of this user, closed to all others."""
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=PLACE))


def remove_scratch(path: str) -> None:
    """Remove the scratch folder of a lab, if it is a folder of this user under a scratch name."""
    folder = Path(path)
    if folder.parent != PLACE or not folder.name.startswith(PREFIX):
        return
    try:
        status = folder.lstat()
    except OSError:
        return
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
        shutil.rmtree(folder, ignore_errors=True)

"""The folder of a running lab for what is gone with it: Ray's sockets, sessions and logs."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

PLACE, PREFIX = Path("/tmp"), "graftlab-"  # noqa: S108 - socket paths have at most 107 characters


def make_scratch() -> Path:
    """A folder that is new, this user's, and closed to all others."""
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=PLACE))


def remove_scratch(noted: str) -> None:
    """Remove one that a lab has noted, if it is a folder of this user's that such a name is given to."""
    folder = Path(noted)
    if folder.parent != PLACE or not folder.name.startswith(PREFIX):
        return
    try:
        found = folder.lstat()
    except OSError:
        return
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
        shutil.rmtree(folder, ignore_errors=True)

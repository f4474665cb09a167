"""Who may read a data folder: its owner alone, whatever it was like before it became a lab's."""

import os
import stat
from contextlib import suppress
from pathlib import Path

OPENED = ("logs",)
"""Folders whose files are looked at one by one; the others are closed as a whole."""


def close_to_others(folder: Path) -> None:
    """Folders 0700 and files 0600: the data folder, what lies in it, and the logs. Links are left alone."""
    folder.chmod(0o700)
    for place in (folder, *(folder / name for name in OPENED)):
        with suppress(FileNotFoundError, NotADirectoryError):
            for each in os.scandir(place):
                _close(each)


def _close(entry: "os.DirEntry[str]") -> None:
    """Raises OSError where the file is somebody else's."""
    if entry.is_symlink():
        return
    wanted = 0o700 if entry.is_dir() else 0o600
    if stat.S_IMODE(entry.stat().st_mode) & 0o077:
        Path(entry.path).chmod(wanted)


def write_secret(file: Path, text: str) -> None:
    """A new file that only its owner can read, from the first moment on."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text)

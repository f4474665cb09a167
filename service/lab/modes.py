"""Permissions of a data folder: only its owner may read it, whatever they were before."""

import os
import stat
from contextlib import suppress
from pathlib import Path

OPENED = ("logs",)
"""Folders whose files are changed one by one; other folders are only closed as a whole."""


def close_to_others(folder: Path) -> None:
    """Set folders to 0700 and files to 0600: the data folder, its entries, and the logs. Links are
    skipped.
    """
    folder.chmod(0o700)
    for place in (folder, *(folder / name for name in OPENED)):
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.scandir(place):
                _close(entry)


def _close(entry: "os.DirEntry[str]") -> None:
    """Raises OSError if the file belongs to another user."""
    if entry.is_symlink():
        return
    mode = 0o700 if entry.is_dir() else 0o600
    if stat.S_IMODE(entry.stat().st_mode) & 0o077:
        Path(entry.path).chmod(mode)


def write_secret(file: Path, text: str) -> None:
    """Write a new file that only its owner can read from the moment it exists."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text)

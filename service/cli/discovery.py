"""Data folder of a lab on this machine, and the address of a running one."""

import os
import shlex
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from pwd import getpwuid

from service.cli.console import Refused
from service.lab.address import read_address
from service.locking import FolderHeld, Held, hold, holder

SYSTEM = "bin boot dev etc home lib media mnt opt proc root run sbin srv sys tmp usr var"
SHARED = (*map(Path, ("/", "/dev/shm", "/usr/local", "/var/lib", "/var/log", "/var/tmp")),)  # noqa: S108
"""Folders, besides the system's in the root, that never become a lab's: that would close them to other
users.
"""
DEFAULT_FOLDERS = ("graftlab-data", "graftlab-demo")


class LabBusy(Exception):
    """Another process runs a lab on this data folder."""


def find_url(option: str | None) -> str:
    """Return the option, else GRAFTLAB_URL, else the address of the lab in this folder, else the default."""
    if option or os.environ.get("GRAFTLAB_URL"):
        return str(option or os.environ["GRAFTLAB_URL"])
    folders = [Path(os.environ["GRAFTLAB_DATA_DIR"])] if "GRAFTLAB_DATA_DIR" in os.environ else []
    for folder in [*folders, *map(Path, DEFAULT_FOLDERS)]:
        address = read_address(folder)
        if address is not None:
            return address.url
    return "http://127.0.0.1:8000"


def data_folder(path: Path) -> Path:
    """Return the absolute folder, with links, `..` and `~` resolved. Raises Refused."""
    try:
        return path.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise Refused([f"--data {path}: {error}; name a folder that this user can reach"]) from error


def lock(folder: Path) -> Held:
    """Create the folder if missing and hold it until the returned lock is closed. Raises LabBusy or
    Refused.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner(folder)
        return hold(folder)
    except FolderHeld as error:
        down = f"`graft down --data {shlex.quote(str(folder))}` stops it"
        raise LabBusy(f"a lab is already running on {folder}{_whose(folder)}; {down}") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise Refused([f"--data {folder}: {error.filename} is a file; name a folder"]) from error
    except OSError as error:
        why = f"{error.strerror} ({error.filename})"
        raise Refused([f"--data {folder}: {why}; name a folder that this user can write to"]) from error


def _check_owner(folder: Path) -> None:
    """Refuse a folder owned by another user or shared with all users: they could change the lab in it.

    Raises Refused.
    """
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise Refused(
            [f"--data {folder}: belongs to {user_name(status.st_uid)}; name a folder that this user owns"]
        )
    if status.st_mode & stat.S_ISVTX or _is_shared(folder):
        raise Refused(
            [f"--data {folder}: is shared with other programs; name a folder that only the lab uses"]
        )


def _is_shared(folder: Path) -> bool:
    places = {Path(tempfile.gettempdir()).resolve(), *SHARED, *(Path("/", name) for name in SYSTEM.split())}
    with suppress(RuntimeError):  # a user without a home folder
        places.add(Path.home().resolve())
    return folder in places


def _whose(folder: Path) -> str:
    process = holder(folder)
    return f" (process {process.pid})" if process else ""


def user_name(uid: int) -> str:
    """Return the user's name on this machine, or `user <number>` if it has none."""
    try:
        return getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"

"""Where a lab keeps its things on this machine, and where a running one is found."""

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
"""With those of the system in the root: never made a lab's, which would close them to everybody else."""
DEFAULT_FOLDERS = ("graftlab-data", "graftlab-demo")


class LabBusy(Exception):
    """Another process runs a lab on this data folder."""


def find_url(given: str | None) -> str:
    """The option, else GRAFTLAB_URL, else the lab whose data folder is here, else the default address."""
    if given or os.environ.get("GRAFTLAB_URL"):
        return str(given or os.environ["GRAFTLAB_URL"])
    folders = [Path(os.environ["GRAFTLAB_DATA_DIR"])] if "GRAFTLAB_DATA_DIR" in os.environ else []
    for folder in [*folders, *map(Path, DEFAULT_FOLDERS)]:
        address = read_address(folder)
        if address is not None:
            return address.url
    return "http://127.0.0.1:8000"


def data_folder(given: Path) -> Path:
    """The folder that is meant, without links, `..` and `~`. Raises Refused."""
    try:
        return given.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise Refused([f"--data {given}: {error}; name a folder that this user can reach"]) from error


def lock(folder: Path) -> Held:
    """Hold the folder, made where it is missing, until the answer is closed. Raises LabBusy or Refused."""
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
    """A folder of somebody else's, or open to everybody, is not made a lab: its owner could change it."""
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise Refused(
            [f"--data {folder}: belongs to {user_name(found.st_uid)}; name a folder of this user's own"]
        )
    if found.st_mode & stat.S_ISVTX or _is_shared(folder):
        raise Refused(
            [f"--data {folder}: is shared with every program here; name a folder for the lab alone"]
        )


def _is_shared(folder: Path) -> bool:
    places = {Path(tempfile.gettempdir()).resolve(), *SHARED, *(Path("/", name) for name in SYSTEM.split())}
    with suppress(RuntimeError):  # a user without a home
        places.add(Path.home().resolve())
    return folder in places


def _whose(folder: Path) -> str:
    found = holder(folder)
    return f" (process {found.pid})" if found else ""


def user_name(uid: int) -> str:
    """As the machine calls the user, or the number where it has no name for it."""
    try:
        return getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"

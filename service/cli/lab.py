"""Where a lab keeps its things on this machine, and where a running one is found."""

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

DEFAULT_FOLDERS = ("graftlab-data", "graftlab-demo")


@dataclass(frozen=True)
class LabAddress:
    """What `lab.json` says of a running lab."""

    url: str
    mlflow_url: str
    ray_dashboard: str
    pid: int


class LabBusy(Exception):
    """Another process runs a lab on this data folder."""


def write_address(folder: Path, address: LabAddress) -> None:
    (folder / "lab.json").write_text(json.dumps(asdict(address)))


def read_address(folder: Path) -> LabAddress | None:
    """None where no lab has run here, or its note is unreadable."""
    try:
        return LabAddress(**json.loads((folder / "lab.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


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


def lock(folder: Path) -> IO[str]:
    """Hold the folder for as long as the returned file is open. Raises LabBusy."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = (folder / "lab.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise LabBusy(
            f"a lab is already running on {folder}; `graft down --data {folder}` stops it"
        ) from error
    return file

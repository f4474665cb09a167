"""The file `lab.json` in a data folder: the address of its lab, and the id of its start."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class LabAddress:
    """Content of `lab.json`. It is a hint: only the folder's lock tells whether the lab still runs."""

    url: str
    mlflow_url: str
    ray_dashboard: str
    pid: int
    lab_id: str = ""
    """Random id of each start; the lab's API shows it, and its processes carry it."""
    scratch: str = ""
    """Folder of Ray's sockets and session logs."""


def write_address(folder: Path, address: LabAddress) -> None:
    (folder / "lab.json").write_text(json.dumps(asdict(address)))


def read_address(folder: Path) -> LabAddress | None:
    """Return the address; None if no lab has run here or the file is unreadable."""
    try:
        return LabAddress(**json.loads((folder / "lab.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def forget_address(folder: Path, lab_id: str | None = None) -> None:
    """Remove the file, if it belongs to this start of the lab."""
    address = read_address(folder)
    if lab_id is None or (address is not None and address.lab_id == lab_id):
        with suppress(OSError):
            (folder / "lab.json").unlink(missing_ok=True)

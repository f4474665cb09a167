"""The note `lab.json` in a data folder: where its lab answers, and which start of it that is."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class LabAddress:
    """What `lab.json` says of a lab. A hint: whether it still runs, its folder's lock alone knows."""

    url: str
    mlflow_url: str
    ray_dashboard: str
    pid: int
    lab_id: str = ""
    """Chosen anew at each start; the lab's API tells it, and its processes carry it."""
    scratch: str = ""
    """Ray's sockets and session logs."""


def write_address(folder: Path, address: LabAddress) -> None:
    (folder / "lab.json").write_text(json.dumps(asdict(address)))


def read_address(folder: Path) -> LabAddress | None:
    """None where no lab has run here, or its note is unreadable."""
    try:
        return LabAddress(**json.loads((folder / "lab.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def forget_address(folder: Path, lab_id: str | None = None) -> None:
    """Remove the note, if it is of this start of the lab."""
    address = read_address(folder)
    if lab_id is None or (address is not None and address.lab_id == lab_id):
        with suppress(OSError):
            (folder / "lab.json").unlink(missing_ok=True)

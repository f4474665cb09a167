"""Whether the files in storage are what was written; each kind of file has its own digest."""

from collections.abc import Iterator

from grafting_core.specs.base import Frozen
from grafting_core.specs.latency import PartLatency
from grafting_core.specs.results import MeasuredCost
from grafting_core.specs.screening import Screened
from grafting_core.storage.artifacts import CARD, damage
from grafting_core.storage.checksums import is_intact, parse_with_digest
from grafting_core.storage.storage import Storage
from workers.contract import checkpoints_folder

PUBLISHED = ("scions", "models", "references", "evaluations")
"""Folders of folders with a card."""
WITH_CHECKSUM = (".chunk", ".image", ".safetensors", "progress")
"""Ends of names of files that begin with the digest of what follows; of those without a card beside."""


def folders(storage: Storage) -> list[str]:
    """Every folder whose files can be checked."""
    found = [f"{kind}/{key}" for kind in PUBLISHED for key in storage.names(kind)]
    found += [f"evaluations/{key}/{part}" for key in storage.names("evaluations") for part in PARTS]
    profiles = storage.names("profiles")
    found += [f"profiles/{each}/{key}" for each in profiles for key in storage.names(f"profiles/{each}")]
    found += [f"costs/{key}" for key in storage.names("costs")]
    runs = [checkpoints_folder(run) for run in storage.names("runs")]
    found += [f"{folder}/{stage}" for folder in runs for stage in storage.names(folder)]
    return [*found, "screened", "latencies"]


PARTS = ("chunks", "images")


def damaged_files(storage: Storage, folder: str) -> Iterator[tuple[str, str]]:
    """(path, what is wrong) of one folder of `folders`. Reads all of it, piece by piece; changes nothing.

    A file that is gone by the time it is read was deleted meanwhile, and is no fault.
    """
    names = storage.names(folder)
    if CARD in names:
        wrong = damage(storage, folder)
        if wrong is not None and storage.exists(f"{folder}/{CARD}"):
            yield folder, wrong
    for name in names:
        path = f"{folder}/{name}"
        wrong = _wrong(storage, folder, name)
        if wrong is not None and storage.exists(path):
            yield path, wrong


def _wrong(storage: Storage, folder: str, name: str) -> str | None:
    path, kind = f"{folder}/{name}", folder.split("/", maxsplit=1)[0]
    if kind in WITH_DIGEST and name.endswith(".json"):
        return _wrong_digest(storage, path, WITH_DIGEST[kind])
    is_payload = kind in PUBLISHED and name.endswith(".safetensors")
    if name.endswith(WITH_CHECKSUM) and not is_payload and not is_intact(storage, path):
        return "its content does not match its digest"
    return None


WITH_DIGEST: dict[str, type[Frozen]] = {"costs": MeasuredCost, "screened": Screened, "latencies": PartLatency}


def _wrong_digest(storage: Storage, path: str, model: type[Frozen]) -> str | None:
    try:
        parse_with_digest(storage.read_bytes(path), model)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return str(error).splitlines()[0]
    return None

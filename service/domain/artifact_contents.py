"""Verify the content of files in storage; each kind of file has its own digest."""

from collections.abc import Iterator

from grafting_core.specs.base import Frozen
from grafting_core.specs.latency import PartLatency
from grafting_core.specs.results import MeasuredCost
from grafting_core.specs.screening import Screened
from grafting_core.storage.artifacts import CARD, damage
from grafting_core.storage.checksums import is_intact, parse_with_digest
from grafting_core.storage.storage import Storage
from workers.contract import checkpoints_folder

PUBLISHED = ("scions", "models", "references", "evaluations", "exports")
"""Folders whose subfolders hold a card."""
WITH_CHECKSUM = (".chunk", ".image", ".safetensors", "progress")
"""Endings of files, other than those described by a card, that begin with the digest of their content."""


def folders(storage: Storage) -> list[str]:
    """List every folder whose files can be checked."""
    result = [f"{kind}/{key}" for kind in PUBLISHED for key in storage.names(kind)]
    result += [f"evaluations/{key}/{part}" for key in storage.names("evaluations") for part in PARTS]
    profiles = storage.names("profiles")
    result += [f"profiles/{name}/{key}" for name in profiles for key in storage.names(f"profiles/{name}")]
    result += [f"costs/{key}" for key in storage.names("costs")]
    runs = [checkpoints_folder(run) for run in storage.names("runs")]
    result += [f"{folder}/{stage}" for folder in runs for stage in storage.names(folder)]
    return [*result, "screened", "latencies"]


PARTS = ("chunks", "images")


def damaged_files(storage: Storage, folder: str) -> Iterator[tuple[str, str]]:
    """Yield (path, problem) for one folder of `folders`. Reads every file in pieces; changes nothing.

    A file that disappears before it is read was deleted meanwhile, which is not a problem.
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

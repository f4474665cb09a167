"""Where unfinished scions stand, filed in the bank: whoever needs one next goes on from there."""

import json
import logging
import time
from collections.abc import Mapping, Sequence

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from grafting_core.storage.bank import Bank
from grafting_core.storage.checksums import sealed
from grafting_core.storage.storage import Storage
from workers.checkpoints import unsealed

log = logging.getLogger(__name__)


class ScionProgress:
    """One file a scion, replaced as a whole; another run, or other workers, may have written the last.

    Scions of a pass may stand at different steps when the pass is taken up again: a process can be killed
    between two files. What a step yields does not depend on who took it.
    """

    def __init__(self, storage: Storage, bank: Bank, keys: Sequence[str], seconds: float) -> None:
        self._storage, self._keys, self._seconds = storage, keys, seconds
        self._paths = {key: f"{bank.folder(key)}/progress" for key in keys}
        self._saved = time.monotonic()

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        """All tensors that are there and intact; a damaged file means that its scion starts over."""
        tensors: dict[str, Tensor] = {}
        for path in self._paths.values():
            if self._storage.exists(path):
                tensors |= self._read(path)
        return (0, tensors) if tensors else None

    def _read(self, path: str) -> dict[str, Tensor]:
        try:
            return unsealed(self._storage.read_bytes(path))
        except (ValueError, SafetensorError, json.JSONDecodeError) as error:
            log.warning("progress %s is damaged (%s); this scion starts over", path, error)
            self._storage.move(path, f"{path}.damaged")
            return {}

    def due(self) -> bool:
        return time.monotonic() - self._saved >= self._seconds

    def save(self, step: int, tensors: Mapping[str, Tensor], loss: float | None = None) -> None:
        """Names begin with the scion's key."""
        for key, path in self._paths.items():
            own = {name: value for name, value in tensors.items() if name.startswith(f"{key}/")}
            self._storage.write_bytes(path, sealed(save(_portable(own))))
        self._saved = time.monotonic()


def _portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

"""Download of one revision of a repository of the Hugging Face hub, because somebody ordered it by name."""

import os
from pathlib import Path
from typing import Protocol

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from grafting_core.specs.registration import HubSource
from workers.stages.intake import SUFFIXES, BadInput

LEFT_OUT = ("*.bin", "*.msgpack", "*.h5", "*.onnx", "*.ckpt", "*.pt")


class Tell(Protocol):
    """How far a phase is."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def download(source: HubSource, to: Path, tell: Tell) -> Path:
    """The files of this revision; those that an earlier attempt has are kept. Raises BadInput.

    The worker needs the network for it; nothing else here uses it.
    """
    tell(0, 1, "downloaded")
    try:
        snapshot_download(
            source.repository,
            revision=source.revision,
            local_dir=to,
            allow_patterns=["README.md", *(f"*{suffix}" for suffix in SUFFIXES)],
            ignore_patterns=list(LEFT_OUT),
            token=os.environ.get("HF_TOKEN") or False,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"{source.repository}@{source.revision} cannot be downloaded: {reason}") from error
    tell(1, 1, "downloaded")
    return to

"""Download one revision of a Hugging Face repository that a user has named; nothing else is downloaded."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoSibling

from grafting_core.specs.registration import CHECKPOINTS, HubSource
from grafting_core.training.observer import StopRequested
from workers.stages.intake import SUFFIXES, BadInput

README = "README.md"
"""Model card, which states the licence."""
PICKLED = ".bin"
"""Repositories often have their safetensors as such files too."""
TAKEN = tuple(suffix for suffix in SUFFIXES if suffix != PICKLED)
NAMED = 5


class Tell(Protocol):
    """Callback with the progress of a phase."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def download(
    source: HubSource,
    to: Path,
    tell: Tell,
    max_bytes: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
    checkpoints: bool = False,
) -> Path:
    """Download the files of this revision; those that an earlier attempt has are kept.

    Safetensors go before `.bin` files. With `checkpoints` the file that the source names is taken alone, or
    the only checkpoint of a repository that holds weights in no other form. Raises BadInput, before anything
    is written if the files have more than `max_bytes`, and StopRequested between two files. The worker needs
    the network for it; nothing else here uses it.
    """
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN") or False)
    with _named_errors(source):
        info = api.model_info(source.repository, revision=source.revision, files_metadata=True)
    files = _listed(source, info.siblings or [], checkpoints)
    total, done = sum(file.size or 0 for file in files), 0
    _check_size(source, total, max_bytes)
    for file in files:
        if stopped():
            raise StopRequested
        tell(done, total, "downloaded")
        with _named_errors(source):
            path = hf_hub_download(
                source.repository,
                file.rfilename,
                revision=info.sha,
                local_dir=to,
                token=api.token,
                endpoint=api.endpoint,
            )
        done += Path(path).stat().st_size
        _check_size(source, done, max_bytes)
    tell(total, total, "downloaded")
    return to


def _listed(source: HubSource, siblings: Sequence[RepoSibling], checkpoints: bool) -> list[RepoSibling]:
    """Files of the kinds that are registered, by name."""
    names = {file.rfilename for file in siblings}
    chosen = {README, *_checkpoint(source, names)} if checkpoints else {README}
    if chosen == {README}:
        pickled = () if any(name.endswith(".safetensors") for name in names) else (PICKLED,)
        chosen |= {name for name in names if name.endswith((*TAKEN, *pickled))}
    found = sorted((file for file in siblings if file.rfilename in chosen), key=lambda file: file.rfilename)
    outside = [file.rfilename for file in found if ".." in PurePosixPath(file.rfilename).parts]
    if outside:
        raise BadInput(f"the repository has a file named {outside[0]!r}")
    return found


def _checkpoint(source: HubSource, names: set[str]) -> list[str]:
    """The checkpoint that is taken of a repository; none where it holds weights in another form.

    Raises BadInput for a named file that is not there, and where several checkpoints could be meant.
    """
    there = sorted(name for name in names if name.endswith(CHECKPOINTS))
    listed = ", ".join(there[:NAMED]) + (f" and {len(there) - NAMED} more" if len(there) > NAMED else "")
    where = f"{source.repository}@{source.revision}"
    if source.file is not None:
        if source.file not in there:
            raise BadInput(f"{where} has no file {source.file}; its checkpoints: {listed or 'none'}")
        return [source.file]
    if any(name.endswith((".safetensors", PICKLED)) for name in names):
        return []
    if len(there) > 1:
        raise BadInput(f"{where} has several checkpoints, {listed}; name one of them as file")
    return there


def _check_size(source: HubSource, size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise BadInput(
            f"{source.repository}@{source.revision} has {size:,} bytes; its owner may register "
            f"{max_bytes:,} more"
        )


@contextmanager
def _named_errors(source: HubSource) -> Iterator[None]:
    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"{source.repository}@{source.revision} cannot be downloaded: {reason}") from error

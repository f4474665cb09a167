"""Copy files of a folder that may change meanwhile: the copy is complete and consistent, or refused."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SUFFIXES = (".json", ".safetensors", ".bin", ".txt", ".npz", ".csv", ".model")
"""Suffixes of files that are copied; others, such as checkpoints of trainers, are ignored."""
MOST_LEVELS = 4
MOST_FILES = 100_000
COPY_BYTES = 1 << 22


class BadInput(ValueError):
    """The given source cannot be registered; the text tells its user why."""


@dataclass(frozen=True)
class Roots:
    """Folders from which the lab registers, without those inside them that are closed."""

    allowed: Sequence[str]
    closed: Sequence[str] = ()

    def admit(self, path: Path) -> bool:
        """Check that a path, with its links resolved, may be read."""
        return _is_in(path, self.allowed) and not _is_in(path, self.closed)


def _is_in(path: Path, folders: Sequence[str]) -> bool:
    return any(path.is_relative_to(os.path.realpath(folder)) for folder in folders)


@dataclass(frozen=True)
class SourceFile:
    """A file to copy: its path, its name in the copy, and the values that show whether it has changed."""

    path: str
    name: str
    size: int
    changed: int
    inode: int


def list_files(folder: Path, roots: Roots | None) -> list[SourceFile]:
    """List a folder's files by name, with links resolved. `roots` None: links may lead anywhere.

    Raises BadInput if it is not a folder, a link leads out of the roots, or there is no usable file.
    """
    top = _resolved(str(folder), roots)
    if not Path(top).is_dir():
        raise BadInput(f"{folder} is no folder on the lab's machine")
    files = sorted(_walk(top, "", roots, MOST_LEVELS), key=lambda file: file.name)
    if not files:
        raise BadInput(f"{folder} holds none of the files that are registered ({', '.join(SUFFIXES)})")
    if len(files) > MOST_FILES:
        raise BadInput(f"{folder} holds {len(files):,} files; at most {MOST_FILES:,} are registered")
    return files


def source_file(path: Path, name: str, roots: Roots | None) -> SourceFile:
    """Describe one file, links resolved. Raises BadInput if it leads out of the roots or is no file."""
    resolved = _resolved(str(path), roots)
    try:
        found = Path(resolved).stat()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(f"{path} is no regular file")
    return SourceFile(resolved, name, found.st_size, found.st_mtime_ns, found.st_ino)


def check_links(source: Path, roots: Roots) -> None:
    """Raises BadInput if a file, or anything in a folder, is missing or leads out of the roots."""
    top = _resolved(str(source), roots)
    if not Path(top).exists():
        raise BadInput(f"{source} is not there, or may not be read by the lab")
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = f"{folder}/{name}"
            # Folders too: one of the lab's own may lie below a root.
            if name in folders or Path(path).is_symlink():
                _resolved(path, roots)


def _resolved(path: str, roots: Roots | None) -> str:
    found = os.path.realpath(path)
    if roots is not None and not roots.admit(Path(found)):
        raise BadInput(f"{path} leads to a place from which this lab does not register")
    return found


def _walk(folder: str, inside: str, roots: Roots | None, levels: int) -> Iterator[SourceFile]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f"{folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = _resolved(entry.path, roots)
        try:
            found = Path(path).stat()
        except OSError as error:
            raise BadInput(f"{entry.path} cannot be read: {error.strerror}") from error
        if stat.S_ISDIR(found.st_mode):
            if levels:
                yield from _walk(path, f"{inside}{entry.name}/", roots, levels - 1)
        elif entry.name.endswith(SUFFIXES):
            if not stat.S_ISREG(found.st_mode):
                raise BadInput(f"{entry.path} is no regular file")
            name = f"{inside}{entry.name}"
            yield SourceFile(path, name, found.st_size, found.st_mtime_ns, found.st_ino)


def copy_files(
    files: Sequence[SourceFile],
    to: Path,
    roots: Roots | None,
    tell: Callable[[int, int], None],
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Copy files into the folder `to`, except those that an earlier attempt has copied. False if stopped.

    Raises BadInput if a file has changed since it was listed.
    """
    total, done = sum(file.size for file in files), 0
    for file in files:
        if stopped():
            return False
        tell(done, total)
        if not is_copied(file, to / file.name):
            _copy(file, to / file.name, roots)
        done += file.size
    tell(total, total)
    return True


def is_copied(file: SourceFile, target: Path) -> bool:
    """Whether an earlier attempt has finished this copy."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return False
    return (found.st_size, found.st_mtime_ns) == (file.size, file.changed)


def _copy(file: SourceFile, target: Path, roots: Roots | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if roots is None:  # the lab's own download, which takes its place on the disk once
        target.unlink(missing_ok=True)
        os.link(file.path, target)
        return
    partial = target.with_name(f".{target.name}.part")
    try:
        with open(open_source(file, roots), "rb") as source, partial.open("wb") as copy:
            copy_bytes(source, copy, file.size)
            copy.flush()
            os.fsync(copy.fileno())
            check_unchanged(file, source.fileno())
        os.utime(partial, ns=(file.changed, file.changed))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def copy_bytes(source: BinaryIO, copy: BinaryIO, size: int) -> None:
    """Copy so many bytes and no more, also of a file that grows meanwhile."""
    while size > 0:
        piece = source.read(min(size, COPY_BYTES))
        if not piece:
            return
        copy.write(piece)
        size -= len(piece)


def open_source(file: SourceFile, roots: Roots | None) -> int:
    """Open the file that was listed, not one that has replaced it since. Raises BadInput."""
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BadInput(f"{file.path} cannot be read: {error.strerror}") from error
    try:
        check_unchanged(file, descriptor)
        _resolved(str(Path(f"/proc/self/fd/{descriptor}").readlink()), roots)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_unchanged(file: SourceFile, descriptor: int) -> None:
    """Raises BadInput for another file than was listed."""
    found = os.fstat(descriptor)
    if (found.st_size, found.st_mtime_ns, found.st_ino) != (file.size, file.changed, file.inode):
        raise BadInput(f"{file.path} changed while it was read; nothing was registered")


def check_same(before: Sequence[SourceFile], after: Sequence[SourceFile]) -> None:
    """Raises BadInput if a folder's files have changed since it was listed."""
    known: Mapping[str, SourceFile] = {file.name: file for file in before}
    changed = sorted(
        {file.name for file in after if known.get(file.name) != file}
        | (known.keys() - {file.name for file in after})
    )
    if changed:
        raise BadInput(f"{changed[0]} changed while the folder was read; nothing was registered")

"""Opening files in folders that other people may change meanwhile."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from grafting_core.data.npz import BadFile

MAX_LEVELS = 64
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Never through a link; opening a pipe does not wait for a writer."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True)
class Access:
    """Which files may be read: `admit` gets the real path of each open file and folder. None: all files.

    The path is checked after opening, because a file can be exchanged between a check and its opening.
    """

    admit: Callable[[Path], bool] | None = None

    def open(self, file: Path) -> BinaryIO:
        """Open a regular file. Raises BadFile for links, other kinds of files, and what is not admitted."""
        with _named_errors(file):
            descriptor = os.open(file, FILE)
        try:
            self._check(file, descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadFile(f"{file} is no regular file")
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise

    def files_of(self, folder: Path) -> list[Path]:
        """Regular files of a folder, without its subfolders and links, in the order of their names."""
        with self._folder(folder) as descriptor, os.scandir(descriptor) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        return [folder / name for name in sorted(names)]

    def walk(self, folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
        """As `os.walk`: follows no links, also where a subfolder becomes one meanwhile. Raises BadFile."""
        with self._folder(folder) as top:
            for inside, names, files, descriptor in os.fwalk(".", dir_fd=top):
                root = folder / inside
                self._check(root, descriptor)
                if len(Path(inside).parts) > MAX_LEVELS:
                    raise BadFile(f"{root} is nested deeper than the {MAX_LEVELS} folders that are read")
                yield root, names, files

    @contextmanager
    def _folder(self, folder: Path) -> Iterator[int]:
        with _named_errors(folder):
            descriptor = os.open(folder, FOLDER)
        try:
            self._check(folder, descriptor)
            yield descriptor
        finally:
            os.close(descriptor)

    def _check(self, path: Path, descriptor: int) -> None:
        if self.admit is None:
            return
        if not self.admit(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise BadFile(f"{path} leads to a place that may not be read")


ALL_FILES = Access()


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise BadFile(f"{path} cannot be read: {reason}") from error

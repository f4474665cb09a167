"""Folders of images."""

from contextlib import AbstractContextManager
from pathlib import Path

from PIL import Image

from grafting_core.data.image_files import FORMATS, counted_files, find_pictures, opened
from grafting_core.data.labels import Label, numbered, read_labels
from grafting_core.data.npz import BadFile
from grafting_core.data.opening import ALL_FILES, Access
from grafting_core.data.sources.base import MAX_SIDE, check_count, fingerprint_of
from grafting_core.specs.encoding import EncodeSettings


class FolderSource:
    """Images of a folder and its subfolders in the order of their paths.

    The first folder of a path is the class, unless a file contains the labels.
    """

    def __init__(self, path: Path, settings: EncodeSettings, access: Access = ALL_FILES) -> None:
        self.path, self._access = path, access
        files, over = find_pictures(path, access)
        if not files:
            besides = f"; skipped: {counted_files(over)}" if over else ""
            raise BadFile(f"{path} has no images in the formats {', '.join(FORMATS)}{besides}")
        self.names = [file.relative_to(path).as_posix() for file in files]
        check_count(path, len(files))
        self.labels, self.classes = list[int](), tuple[str, ...]()
        if settings.conditions == "labels":
            labels = self._of_file(settings.labels_file) if settings.labels_file else self._of_folders()
            if not settings.labels_file and not settings.classes:
                _check_numbers(path, {str(label) for label in labels})
            self.labels, self.classes = numbered(labels, settings.classes, self.names)

    def _of_folders(self) -> list[Label]:
        for name in self.names:
            if "/" not in name:
                raise BadFile(
                    f"{self.path / name} is in no class folder; put each class into a folder, "
                    "set labels_file, or set conditions to none"
                )
        return [name.split("/", 1)[0] for name in self.names]

    def _of_file(self, name: str) -> list[Label]:
        file = self.path / name
        if not file.resolve().is_relative_to(self.path.resolve()):
            raise BadFile(f"labels_file {name!r} is outside of {self.path}")
        labels = read_labels(file, self._access)
        for image in self.names:
            if image not in labels:
                raise BadFile(f"{file} has no label of {image}")
        if len(labels) > len(self.names):
            missing = min(set(labels) - set(self.names))
            raise BadFile(f"{file} names {missing}, which is no image of {self.path}")
        return [labels[image] for image in self.names]

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        return opened(self.path / self.names[index], max_side=MAX_SIDE, access=self._access)

    def fingerprint(self) -> str:
        files, _ = find_pictures(self.path, self._access)
        return fingerprint_of((file.relative_to(self.path).as_posix(), file) for file in files)


def _check_numbers(path: Path, names: set[str]) -> None:
    """Raise BadFile if class folders are named by numbers that have gaps, or do not begin at 0 or 1.

    Each folder would get the label of its place, which is not the number that its name says.
    """
    if not all(name.isascii() and name.isdecimal() for name in names):
        return
    found = {int(name): name for name in sorted(names)}
    first = min(*found, 1)
    missing = next(number for number in range(first, first + len(found) + 1) if number not in found)
    twice = sorted(names - set(found.values()))
    if missing > max(found) and not twice:
        return
    problem = f"{twice[0]} beside {found[int(twice[0])]}" if twice else f"{max(found)}, but not {missing}"
    raise BadFile(
        f"{path} has the numbered class folder {problem}; name them from 0 without gaps, or set classes to "
        "the folders in the order of their labels"
    )

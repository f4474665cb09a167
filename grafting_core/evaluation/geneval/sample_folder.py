"""The official layout of images: `00000/metadata.jsonl` and `00000/samples/0000.png`, a folder a prompt."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grafting_core.data.image_files import counted_files
from grafting_core.data.npz import BadFile
from grafting_core.evaluation.geneval.prompt_file import NAMED, PromptSet, prompt_of

METADATA, SAMPLES = "metadata.jsonl", "samples"
NAME = re.compile(r"\d+\.png")


@dataclass(frozen=True)
class Sample:
    """An image of a prompt: the prompt's index, the image's number and file."""

    prompt: int
    number: int
    file: Path


@dataclass(frozen=True)
class SampleFolder:
    """Images of a prompt set in the order of prompts and numbers."""

    samples: tuple[Sample, ...]
    missing: tuple[str, ...]
    """Prompts with fewer images than required, in words; empty if the set is complete."""
    notes: tuple[str, ...]


def read_sample_folder(
    folder: Path, prompts: PromptSet, per_prompt: int = 4, partial: bool = False
) -> SampleFolder:
    """List the images of a folder. Raises BadFile for images of other prompts, and for an incomplete set
    unless it may be `partial`.
    """
    if not folder.is_dir():
        raise BadFile(f"{folder} is no folder; folders of images named 00000, 00001 ... are expected in it")
    found, skipped = dict[int, list[Sample]](), Counter[str]()
    for index, inner in _numbered(folder, prompts, skipped):
        _check_metadata(inner, index, prompts)
        found[index] = _samples(inner, index, skipped)
    _check_numbers(found, per_prompt)
    missing = tuple(_missing(len(prompts), found, per_prompt))
    _check_complete(folder, found, len(prompts) * per_prompt, missing, partial)
    notes = (f"{folder} has files that were not scored: {counted_files(skipped)}",) if +skipped else ()
    listed = tuple(sample for index in sorted(found) for sample in found[index])
    return SampleFolder(listed, missing, notes)


def sample_file(folder: Path, prompt: int, number: int) -> Path:
    """Path of an image in the official layout."""
    return folder / f"{prompt:05d}" / SAMPLES / f"{number:04d}.png"


def write_metadata(folder: Path, prompts: PromptSet) -> None:
    """Make a folder for each prompt with its metadata and an empty folder for its images."""
    for index, metadata in enumerate(prompts.metadata):
        inner = folder / f"{index:05d}"
        (inner / SAMPLES).mkdir(parents=True, exist_ok=True)
        (inner / METADATA).write_text(metadata, encoding="utf-8")


def _numbered(folder: Path, prompts: PromptSet, skipped: Counter[str]) -> Iterator[tuple[int, Path]]:
    """Folders of prompts by index. Raises BadFile for a number that is no prompt's, or that occurs twice."""
    names = dict[int, str]()
    for inner in sorted(folder.iterdir()):
        if not inner.is_dir():
            continue
        if not re.fullmatch(r"[0-9]+", inner.name):
            skipped["in folders without a number"] += sum(each.is_file() for each in inner.rglob("*"))
            continue
        index = int(inner.name)
        if index >= len(prompts):
            raise BadFile(f"{inner} is the folder of no prompt; there are {len(prompts)}, counted from 0")
        if index in names:
            raise BadFile(f"{folder} has two folders for prompt {index}: {names[index]} and {inner.name}")
        names[index] = inner.name
        yield index, inner


def _check_metadata(inner: Path, index: int, prompts: PromptSet) -> None:
    file = inner / METADATA
    try:
        own = prompt_of(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(f"{file} cannot be read as the metadata of a prompt: {error}") from error
    if own != prompts.prompts[index]:
        raise BadFile(
            f"{file} is {own.prompt!r}, but prompt {index} of the file is {prompts.prompts[index].prompt!r}; "
            "name the prompts that the images were made from"
        )


def _samples(inner: Path, index: int, skipped: Counter[str]) -> list[Sample]:
    folder = inner / SAMPLES
    if not folder.is_dir():
        return []
    named = list[Sample]()
    for file in folder.iterdir():
        if NAME.fullmatch(file.name) and file.is_file():
            named.append(Sample(index, int(file.stem), file))
        else:
            skipped[_why_skipped(file)] += 1
    return sorted(named, key=lambda sample: (sample.number, sample.file.name))


def _why_skipped(file: Path) -> str:
    if file.suffix != ".png":
        return f"{file.suffix or 'without a suffix'}, not .png"
    return "whose name is no number"


def _check_numbers(found: dict[int, list[Sample]], per_prompt: int) -> None:
    for index, images in found.items():
        if len(images) > per_prompt:
            raise BadFile(f"prompt {index} has {len(images)} images; {per_prompt} are scored for each prompt")
        if len({sample.number for sample in images}) < len(images):
            names = ", ".join(sample.file.name for sample in images)
            raise BadFile(f"prompt {index} has two images of one number: {names}")


def _missing(count: int, found: dict[int, list[Sample]], per_prompt: int) -> Iterator[str]:
    for index in range(count):
        images = len(found.get(index, ()))
        if images < per_prompt:
            yield f"prompt {index} has {images} of {per_prompt} images"


def _check_complete(
    folder: Path, found: dict[int, list[Sample]], needed: int, missing: tuple[str, ...], partial: bool
) -> None:
    count = sum(map(len, found.values()))
    if not count:
        raise BadFile(f"{folder} has no images; 00000/{SAMPLES}/0000.png and so on are expected in it")
    if missing and not partial:
        more = f"; and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise BadFile(
            f"{folder} is incomplete, with {count} of {needed} images: {'; '.join(missing[:NAMED])}{more}. "
            "An incomplete set has no overall score; --partial scores its tasks"
        )

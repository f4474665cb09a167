"""Samples in files for other tools: an `.npz` in the ADM evaluator's format, and its manifest.

`arr_0` is uint8 [N, H, W, 3] in C order, uncompressed. Balanced labels repeat in a fixed cycle, which would
bias scores over consecutive rows (the ADM inception score), so their rows are shuffled with a fixed seed; the
manifest gives the sample of each row.
"""

import csv
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from grafting_core.data.latents import generator_for
from grafting_core.diffusion.sampling import noise_seeds, sample_labels
from grafting_core.specs.plans import EvaluationProtocol

Bytes = npt.NDArray[np.uint8]
MEMBER = "arr_0.npy"
COPY_BYTES = 2**22


@dataclass(frozen=True)
class ImagePart:
    """uint8 images [n, H, W, 3] of samples first .. first + n."""

    first: int
    images: Bytes


def as_rgb(images: Bytes) -> Bytes:
    """[n, H, W] or [n, H, W, C] with C of 1 or 3 -> [n, H, W, 3]; gray is repeated. Raises ValueError."""
    channels = images[..., None] if images.ndim == 3 else images
    if channels.shape[3] not in (1, 3):
        raise ValueError(f"images have {channels.shape[3]} channels; 1 or 3 are supported")
    return np.ascontiguousarray(np.broadcast_to(channels, (*channels.shape[:3], 3)))


def row_order(protocol: EvaluationProtocol) -> npt.NDArray[np.int64]:
    """Sample index of every row of the file."""
    if protocol.labels == "uniform":
        return np.arange(protocol.samples)
    order: npt.NDArray[np.int64] = torch.randperm(
        protocol.samples, generator=generator_for("rows", protocol.seed, 0)
    ).numpy()
    return order


def write_npz(path: Path, protocol: EvaluationProtocol, parts: Iterable[ImagePart]) -> None:
    """Write all samples of a protocol to one file, reproducible byte for byte. Memory holds one part.

    Raises ValueError unless the parts are samples 0 .. protocol.samples, each once.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        rows = Path(folder) / MEMBER
        _put_in_order(rows, protocol, parts)
        with (
            zipfile.ZipFile(path, "w") as archive,
            rows.open("rb") as source,
            # `ZipInfo` without a time keeps bytes reproducible; the size is unknown here, so allow 64 bits.
            archive.open(zipfile.ZipInfo(MEMBER), "w", force_zip64=True) as member,
        ):
            shutil.copyfileobj(source, member, COPY_BYTES)


def _put_in_order(path: Path, protocol: EvaluationProtocol, parts: Iterable[ImagePart]) -> None:
    row_of = np.argsort(row_order(protocol))
    times = np.zeros(protocol.samples, np.int64)
    rows: np.memmap[tuple[int, ...], np.dtype[np.uint8]] | None = None
    for part in parts:
        if rows is None:
            shape = (protocol.samples, *part.images.shape[1:])
            rows = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        places = slice(part.first, part.first + len(part.images))
        times[places] += 1
        rows[row_of[places]] = part.images
    wrong = np.flatnonzero(times != 1)
    if len(wrong):
        raise ValueError(f"sample {wrong[0]} occurs {times[wrong[0]]} times; each must occur once")


def manifest(protocol: EvaluationProtocol, num_classes: int) -> str:
    """CSV of row, sample index, seed of its noise and label (empty without classes), in the file's order."""
    order = row_order(protocol).tolist()
    labels = sample_labels(protocol, num_classes, order).tolist() if num_classes else [""] * len(order)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("row", "index", "seed", "label"))
    writer.writerows(zip(range(len(order)), order, noise_seeds(protocol, order), labels, strict=True))
    return text.getvalue()

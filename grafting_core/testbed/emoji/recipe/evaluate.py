"""Measure what was made: the detector on unseen scenes, and GenEval of painters, scenes and copies."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from grafting_core.testbed.emoji.autoencoder import PatchAutoencoder
from grafting_core.testbed.emoji.detector import SAME_OBJECT, Detector, overlap
from grafting_core.testbed.emoji.prompts import captions
from grafting_core.testbed.emoji.recipe.settings import autocast
from grafting_core.testbed.emoji.recipe.source import Scenes, Source
from grafting_core.testbed.emoji.sampling import Painter
from grafting_core.testbed.emoji.scoring import THRESHOLD, judge, summary
from grafting_core.testbed.emoji.vocabulary import CLASSES, COLOURS

BENCHMARK_SEED = 43
IMAGES_PER_PROMPT = 4
CHUNK_PIXELS = 256 * 64 * 64

Pictures = Callable[[Sequence[int], Sequence[int]], Tensor]
"""Caption rows and seeds to pictures."""


def geneval(
    detector: Detector, pictures: Pictures, resolution: int, prompts: Sequence[int]
) -> dict[str, Any]:
    """Scores by task of four pictures a caption; a picture's seed is its place in the benchmark."""
    rows = [row for row in prompts for _ in range(IMAGES_PER_PROMPT)]
    verdicts = []
    for chunk in _chunks(len(rows), resolution):
        chosen = [rows[place] for place in chunk]
        for row, found in zip(chosen, detector.detect(pictures(chosen, chunk)), strict=True):
            caption = captions()[row]
            verdicts.append((caption.task, judge(caption.metadata(), found).correct))
    return summary(verdicts)


def painted(painter: Painter) -> Pictures:
    """Pictures of a painter."""

    def pictures(rows: Sequence[int], seeds: Sequence[int]) -> Tensor:
        with autocast(next(painter.transformer.parameters()).device):
            return painter.paint([captions()[row].text for row in rows], seeds)

    return pictures


def real(source: Source, resolution: int, autoencoder: PatchAutoencoder | None = None) -> Pictures:
    """Scenes as they are drawn: the ceiling; or what an autoencoder leaves of them."""

    def pictures(rows: Sequence[int], seeds: Sequence[int]) -> Tensor:
        drawn = source.of_rows(torch.tensor(rows), seeds[0], resolution).pictures
        return autoencoder.reconstruct(drawn) if autoencoder else drawn

    return pictures


def _chunks(total: int, resolution: int) -> Iterator[list[int]]:
    size = max(1, CHUNK_PIXELS // resolution**2)
    for start in range(0, total, size):
        yield list(range(start, min(start + size, total)))


def detector_accuracy(
    detector: Detector,
    source: Source,
    resolution: int,
    count: int,
    autoencoder: PatchAutoencoder | None = None,
) -> dict[str, float]:
    """On scenes of a stream of their own: objects found, their colour right, whole pictures right."""
    objects = hits = tinted = 0
    pictures = 0
    for step, chunk in enumerate(_chunks(count, resolution)):
        scenes = source.batch(step, len(chunk), resolution)
        shown = autoencoder.reconstruct(scenes.pictures) if autoencoder else scenes.pictures
        for truth, found in zip(_truths(scenes, resolution), detector.detect(shown), strict=True):
            kept = [one for one in found if one.score > THRESHOLD]
            matches = [
                [one for one in kept if one.name == name and overlap(one.box, box) > SAME_OBJECT]
                for name, _, box in truth
            ]
            objects += len(truth)
            hits += sum(len(match) > 0 for match in matches)
            right = [
                bool(m) and m[0].colour == colour for m, (_, colour, _) in zip(matches, truth, strict=True)
            ]
            tinted += sum(right)
            pictures += all(right) and len(kept) == len(truth)
    return {
        "objects_found": round(hits / objects, 5),
        "objects_found_with_colour": round(tinted / objects, 5),
        "pictures_without_error": round(pictures / count, 5),
    }


def _truths(scenes: Scenes, resolution: int) -> Iterator[list[tuple[str, str | None, list[float]]]]:
    """Class, colour and box in pixels of every object, by picture."""
    layout = scenes.layout
    columns = (layout.classes, layout.colours, layout.boxes * resolution)
    for classes, colours, boxes in zip(*(column.tolist() for column in columns), strict=True):
        yield [
            (CLASSES[label], COLOURS[colour] if colour < len(COLOURS) else None, box)
            for label, colour, box in zip(classes, colours, boxes, strict=True)
            if label >= 0
        ]

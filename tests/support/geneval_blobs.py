"""A prompt judge for drawn scenes: plain rectangles on grey, squares are dogs and wide ones cats."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from grafting_core.evaluation.geneval.detections import Detection
from grafting_core.evaluation.geneval.judge import DetectedColors, DetectionJudge
from grafting_core.evaluation.geneval.pictures import Picture
from grafting_core.evaluation.geneval.prompt_file import read_prompts, write_prompts
from grafting_core.evaluation.geneval.sample_folder import sample_file, write_metadata
from grafting_core.specs.geneval import PromptSpec
from grafting_core.specs.prompt_judges import JudgeKind

SIDE, GREY = 64, (128, 128, 128)
PAINT = {"red": (220, 0, 0), "blue": (0, 0, 220), "green": (0, 160, 0)}
Blob = tuple[str, str, int, int]
"""Class, colour, left and top."""


class BlobDetector:
    """Connected regions of one paint."""

    classes = ("dog", "cat")

    def __init__(self) -> None:
        self.images = 0

    def detect(self, pictures: Sequence[Picture]) -> list[list[Detection]]:
        self.images += len(pictures)
        return [self._detect(picture) for picture in pictures]

    def _detect(self, picture: Picture) -> list[Detection]:
        found = []
        for color, paint in PAINT.items():
            regions, _ = ndimage.label((picture.pixels == paint).all(-1))
            for rows, columns in ndimage.find_objects(regions):
                box = (columns.start, rows.start, columns.stop, rows.stop)
                name = "dog" if box[2] - box[0] == box[3] - box[1] else "cat"
                found.append(Detection(name, tuple(map(float, box)), 0.99, color=color))
        return found


def blob_judge(**options: Any) -> DetectionJudge:
    return DetectionJudge("blobs", BlobDetector(), DetectedColors(), {}, **options)


def load_blobs(name: str, sources: Mapping[str, Any], device: Any) -> DetectionJudge:
    return blob_judge()


BLOBS = JudgeKind(api=1, load="tests.support.geneval_blobs:load_blobs", summary="drawn rectangles")


def draw(*blobs: Blob, shift: int = 0) -> Image.Image:
    """A scene; `shift` pixels to the right make another image of the same content."""
    image = Image.new("RGB", (SIDE, SIDE), GREY)
    for name, color, start, top in blobs:
        left = start + shift
        width = 10 if name == "dog" else 16
        ImageDraw.Draw(image).rectangle((left, top, left + width - 1, top + 9), fill=PAINT[color])
    return image


DOG, CAT = ("dog", "red", 4, 4), ("cat", "blue", 40, 40)
SCENES: dict[str, tuple[dict[str, Any], tuple[Blob, ...]]] = {
    "single_object": ({"include": [{"class": "dog", "count": 1}]}, (DOG,)),
    "two_object": ({"include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]}, (DOG, CAT)),
    "counting": (
        {"include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]},
        (DOG, ("dog", "red", 40, 4)),
    ),
    "colors": ({"include": [{"class": "dog", "count": 1, "color": "red"}]}, (DOG,)),
    "position": (
        {
            "include": [
                {"class": "dog", "count": 1},
                {"class": "cat", "count": 1, "position": ["below", 0]},
            ]
        },
        (DOG, CAT),
    ),
    "color_attr": (
        {
            "include": [
                {"class": "dog", "count": 1, "color": "red"},
                {"class": "cat", "count": 1, "color": "blue"},
            ]
        },
        (DOG, CAT),
    ),
}
"""Task -> the rest of its line, and a scene that is right."""


def blob_set(
    root: Path, name: str = "images", prompts: int = 2, wrong: Sequence[tuple[int, int]] = ()
) -> Path:
    """A complete folder of scenes, `prompts` a task, and its prompt file next to it; the images (prompt,
    number) in `wrong` are empty.
    """
    specs = [
        PromptSpec.model_validate_json(json.dumps({"tag": tag, **line, "prompt": f"{tag} {number}"}))
        for tag, (line, _) in SCENES.items()
        for number in range(prompts)
    ]
    write_prompts(root / "prompts.jsonl", specs)
    folder = root / name
    write_metadata(folder, read_prompts(root / "prompts.jsonl"))
    for index, spec in enumerate(specs):
        for number in range(4):
            blobs = () if (index, number) in wrong else SCENES[spec.tag][1]
            draw(*blobs, shift=number).save(sample_file(folder, index, number))
    return folder


def empty_picture() -> Picture:
    image = draw()
    return Picture(Path("empty.png"), np.asarray(image), image, False)

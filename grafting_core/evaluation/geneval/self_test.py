"""Self-test of a detector and a colour classifier on images with known content.

Weights that do not fit, or arithmetic that loses precision, lower all scores without an error. A photograph
that matplotlib ships, of one person, and drawn discs tell.
"""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from grafting_core.evaluation.geneval.detections import Detection, overlap
from grafting_core.evaluation.geneval.judge import ColorClassifier, ObjectDetector
from grafting_core.evaluation.geneval.pictures import Picture, read_picture
from grafting_core.specs.geneval import OFFICIAL_RULES

PHOTO = "grace_hopper.jpg"
PERSON = Detection("person", (12, 22, 512, 600), 1.0)
"""The person in the photograph of 512 x 600 pixels; the box ends at the edges of hat and coat."""
SAME_BOX = 0.85
DISCS = {
    "red": (220, 20, 20),
    "yellow": (250, 230, 20),
    "green": (20, 150, 40),
    "blue": (30, 60, 220),
    "black": (10, 10, 10),
    "white": (250, 250, 250),
}
DISC_NAME = "frisbee"
RIGHT_DISCS = 4
"""Discs of six whose colour must be right; guessing gives as many once in 800 times."""


def photo() -> Picture:
    """The photograph, from matplotlib's own data."""
    return read_picture(Path(matplotlib.get_data_path()) / "sample_data" / PHOTO)


def check_detector(detector: ObjectDetector) -> None:
    """Raise ValueError unless the detector finds the person in the photograph."""
    (found,) = detector.detect([photo()])
    persons = [each for each in found if each.name == PERSON.name]
    best = max(persons, key=lambda each: each.score, default=None)
    if best is None or best.score <= OFFICIAL_RULES.counting_threshold or overlap(best, PERSON) < SAME_BOX:
        seen = "nothing" if best is None else f"a person with score {best.score:.3f} at {_rounded(best)}"
        raise ValueError(
            f"the detector's self-test failed: in {PHOTO} it finds {seen}, where a person with a score above "
            f"{OFFICIAL_RULES.counting_threshold} at {_rounded(PERSON)} is expected"
        )


def check_colors(colors: ColorClassifier) -> None:
    """Raise ValueError unless the classifier names the colours of most discs."""
    seen = {color: _seen(colors, color) for color in DISCS}
    right = sum(color == named for color, named in seen.items())
    if right < RIGHT_DISCS:
        listed = ", ".join(f"{color} is called {named}" for color, named in seen.items() if color != named)
        raise ValueError(f"the colour classifier's self-test failed: of six discs, {listed}")


def _seen(colors: ColorClassifier, color: str) -> str:
    image = Image.new("RGB", (224, 224), "#999")
    ImageDraw.Draw(image).ellipse((24, 24, 200, 200), fill=DISCS[color])
    picture = Picture(Path(f"{color} disc"), np.asarray(image), image, False)
    (named,) = colors.classify(picture, DISC_NAME, [Detection(DISC_NAME, (0, 0, 224, 224), 1.0)])
    return named


def _rounded(detection: Detection) -> str:
    return str([round(side) for side in detection.box])

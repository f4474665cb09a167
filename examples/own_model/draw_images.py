"""Draw a folder of 64 x 64 RGB pictures of ten shapes: `python draw_images.py FOLDER [--each 300]`.

It stands for the images of your own: a folder for each class, with files of any names.
"""

import argparse
import math
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, SCALE = 64, 4
Draw = Callable[[ImageDraw.ImageDraw, float, float, float, tuple[int, int, int]], None]


def polygon(points: int, inner: float = 1.0, turn: float = -math.pi / 2) -> Draw:
    """A regular polygon, or a star where every other corner lies at `inner` of the radius."""

    def draw(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: tuple[int, int, int]) -> None:
        corners = points if inner == 1.0 else 2 * points
        places = []
        for index in range(corners):
            radius = r * (inner if index % 2 and inner != 1.0 else 1.0)
            angle = turn + 2 * math.pi * index / corners
            places.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
        canvas.polygon(places, fill=colour)

    return draw


def circle(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: tuple[int, int, int]) -> None:
    canvas.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def ring(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: tuple[int, int, int]) -> None:
    canvas.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=int(r * 0.4))


def cross(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: tuple[int, int, int]) -> None:
    canvas.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=colour)
    canvas.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=colour)


def bars(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: tuple[int, int, int]) -> None:
    for offset in (-0.8, 0.0, 0.8):
        canvas.rectangle((x - r, y + offset * r - r / 6, x + r, y + offset * r + r / 6), fill=colour)


def columns(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: tuple[int, int, int]) -> None:
    for offset in (-0.8, 0.0, 0.8):
        canvas.rectangle((x + offset * r - r / 6, y - r, x + offset * r + r / 6, y + r), fill=colour)


SHAPES: dict[str, Draw] = {
    "bars": bars,
    "circle": circle,
    "columns": columns,
    "cross": cross,
    "diamond": polygon(4),
    "hexagon": polygon(6),
    "ring": ring,
    "square": polygon(4, turn=math.pi / 4),
    "star": polygon(5, inner=0.4),
    "triangle": polygon(3),
}


def picture(shape: str, seed: int) -> Image.Image:
    """One picture; the same for the same shape and seed."""
    chance = random.Random(f"{shape}/{seed}")  # noqa: S311
    ground = tuple(chance.randrange(170, 256) for _ in range(3))
    colour = [chance.randrange(0, 90) for _ in range(3)]
    colour[chance.randrange(3)] = chance.randrange(150, 230)
    image = Image.new("RGB", (SIDE * SCALE, SIDE * SCALE), ground)
    radius = chance.uniform(0.22, 0.38) * SIDE * SCALE
    x, y = (chance.uniform(radius, SIDE * SCALE - radius) for _ in range(2))
    SHAPES[shape](ImageDraw.Draw(image), x, y, radius, (colour[0], colour[1], colour[2]))
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def draw_folder(folder: Path, each: int) -> None:
    """Write `each` pictures of every shape."""
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for seed in range(each):
            picture(shape, seed).save(folder / shape / f"{seed:05d}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=300)
    given = parser.parse_args()
    draw_folder(given.folder, given.each)

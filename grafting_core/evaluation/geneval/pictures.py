"""Images as the rules need them: as they are stored for the detector, and upright for the colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from grafting_core.data.image_files import PLAIN, WITH_ALPHA, opened
from grafting_core.data.images import Images
from grafting_core.data.npz import BadFile
from grafting_core.evaluation.geneval.detections import Detection

BACKGROUND = "#999"
"""Colour of the pixels outside an object's mask."""


@dataclass(frozen=True)
class Picture:
    """An image in RGB, without alpha: the colours of transparent pixels show."""

    file: Path
    pixels: Images
    """As stored [H, W, 3]: the detector does not follow the EXIF orientation."""
    upright: Image.Image
    transparent: bool


def read_picture(file: Path) -> Picture:
    """Read an image. Raises BadFile for one that cannot be read, or of more than 8 bits a colour."""
    with opened(file) as picture:
        if picture.mode not in PLAIN | WITH_ALPHA:
            raise BadFile(f"{file} has 16 bits per pixel; save it as 8-bit RGB")
        transparent = "transparency" in picture.info or picture.mode in WITH_ALPHA
        hidden = transparent and bool(np.asarray(picture.convert("RGBA"))[..., 3].min() < 255)
        stored = picture.convert("RGB")
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    return Picture(file, np.asarray(stored), upright, hidden)


def crops(picture: Picture, objects: Sequence[Detection]) -> list[Image.Image]:
    """Objects cut out at their boxes, on grey where their masks end.

    Corners are rounded half to even; what lies beyond the image is black. Raises BadFile if the orientation
    turns the image so that masks do not fit.
    """
    return [_crop(picture, each) for each in objects]


def _crop(picture: Picture, each: Detection) -> Image.Image:
    image = picture.upright
    if each.mask is not None:
        if each.mask.shape != image.size[::-1]:
            raise BadFile(
                f"{picture.file} is turned by its EXIF orientation, but the detector's masks are of the "
                "image as it is stored; save it upright"
            )
        grey = Image.new("RGB", image.size, BACKGROUND)
        image = Image.composite(image, grey, Image.fromarray(each.mask))
    left, top, right, bottom = (round(float(side)) for side in each.corners)
    return image.crop((left, top, right, bottom))

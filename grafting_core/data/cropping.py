"""Crop and resize images to squares, as ADM's training code does."""

import numpy as np
from PIL import Image

from grafting_core.data.images import Images


def centre_square(pixels_HWC: Images, side: int) -> Images:
    """Centre of an image as [side, side, C].

    The image is halved by averaging while its shorter side is at least twice too long, then resized
    bicubically to fit, then cropped. Small images are enlarged.
    """
    picture = Image.fromarray(pixels_HWC)
    while min(picture.size) >= 2 * side:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Image.Resampling.BOX)
    scale = side / min(picture.size)
    fitting = (round(picture.width * scale), round(picture.height * scale))
    resized = np.asarray(picture.resize(fitting, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    return resized[top : top + side, left : left + side]


def luma(pixels_HWC: Images) -> Images:
    """RGB to gray [H, W, 1] by ITU-R 601; gray values do not change."""
    return np.asarray(Image.fromarray(pixels_HWC).convert("L"))[..., None]

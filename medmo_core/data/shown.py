"""Pictures as a sample shows them: warped where it says so, then cropped."""

import numpy as np
from numpy.typing import NDArray

from .images.load import crop_pixels, load_whole
from .records.sample import ImageRef
from .records.store import Root
from .warps import random_warp

Pixels = NDArray[np.uint8]


def load_shown(image: ImageRef, root: Root) -> Pixels:
    """Read a picture and return what a sample shows of it: (H, W, 3).

    Args:
        image: the picture, and what to take of it.
        root: data root of its path.

    Raises:
        ImageError: the picture cannot be read as asked.
    """
    return show(load_whole(image, root).pixels, image)


def show(pixels: Pixels, image: ImageRef) -> Pixels:
    """Return what a sample shows of a stored picture (H, W, 3), or of its outlines (H, W).

    Raises:
        ImageError: the crop misses the picture.
    """
    if image.warp is not None:
        warp = random_warp(image.warp, (pixels.shape[1], pixels.shape[0]))
        pixels = warp.labels(pixels) if pixels.ndim == 2 else warp.picture(pixels)
    return pixels if image.crop is None else crop_pixels(pixels, image.crop)

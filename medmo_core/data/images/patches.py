"""Patches of an image of any size: size rule, resampling, cutting into patches.

Pixels stay uint8 throughout; normalisation belongs to the model.

Shapes: H x W image, p patch size, m merge size, N = (h / p) * (w / p) patches.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ...batch import PatchSpec
from ...errors import InputError

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the height and width an image is resized to: multiples of `factor` within the pixel budget.

    Equal to the rule of transformers' Qwen2-VL and Qwen3-VL image processors.

    Units: pixels; `factor` is `PatchSpec.token_px` (32 for Qwen3-VL).

    Args:
        height: height of the image as it is.
        width: width of the image as it is.
        factor: side of one visual token.
        min_pixels: a smaller area is enlarged to at least this.
        max_pixels: a larger area is shrunk to at most this, except that no side falls below `factor`.

    Raises:
        ValueError: an empty image, an aspect ratio above 200, or a budget that cannot be met.
    """
    if height < 1 or width < 1:
        raise InputError(f"an image of {width}x{height} px has no pixels to resize")
    if factor < 1 or not 0 < min_pixels <= max_pixels:
        raise InputError(
            f"pixel budget min_pixels={min_pixels}, max_pixels={max_pixels}, factor={factor}: "
            "needs factor >= 1 and 0 < min_pixels <= max_pixels"
        )
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise InputError(
            f"an image of {width}x{height} px is {ratio:.0f} times longer than wide; at most {MAX_ASPECT_RATIO} is "
            "supported: crop it, or cut it into several images"
        )
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        scale = math.sqrt((height * width) / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def resize_pixels(pixels: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resample an image by antialiased bicubic interpolation, uint8 in and out.

    Shapes: (H, W, 3) -> (h, w, 3).

    Args:
        pixels: the image.
        size_hw: height and width of the result.

    Raises:
        ValueError: `pixels` is not an (H, W, 3) uint8 image.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(f"expected an (H, W, 3) uint8 image, got shape {pixels.shape} of {pixels.dtype}")
    if tuple(pixels.shape[:2]) == tuple(size_hw):
        return pixels
    writable = np.ascontiguousarray(pixels) if pixels.flags.writeable else pixels.copy()
    channels_last = torch.from_numpy(writable).permute(2, 0, 1)[None]
    resized = F.interpolate(channels_last, size=list(size_hw), mode="bicubic", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def patchify(
    pixels: NDArray[np.uint8], spec: PatchSpec, size_hw: tuple[int, int]
) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
    """Resize an image and cut it into the patches of one encoder, in merge order.

    The m * m patches of one visual token are consecutive; tokens run row by row, and so do the patches inside each.

    Shapes: pixels (H, W, 3) -> patches (N, 3 * p * p), each row [channel, y, x]; grid (1, h / p, w / p).

    Args:
        pixels: the image.
        spec: patch and merge size of the encoder.
        size_hw: height and width to resize to, as from `smart_resize`.

    Returns:
        The patches and the grid (frames, rows, columns) in patches.

    Raises:
        ValueError: the size is no multiple of one visual token.
    """
    height, width = size_hw
    if height % spec.token_px or width % spec.token_px or height < 1 or width < 1:
        raise InputError(f"size {width}x{height} px must be a multiple of {spec.token_px} px, one visual token")
    resized = resize_pixels(pixels, size_hw)
    p, m = spec.patch_size, spec.merge_size
    blocks = resized.reshape(height // (p * m), m, p, width // (p * m), m, p, 3)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3 * p * p)
    return np.ascontiguousarray(patches), (1, height // p, width // p)


def unpatchify(patches: NDArray[np.uint8], grid: tuple[int, int, int], spec: PatchSpec) -> NDArray[np.uint8]:
    """Put the patches of one still image back together: the inverse of `patchify` without its resizing.

    Shapes: patches (N, 3 * p * p), grid (1, h / p, w / p) -> (h, w, 3).
    """
    _, rows, columns = (int(n) for n in grid)
    p, m = spec.patch_size, spec.merge_size
    blocks = patches.reshape(rows // m, columns // m, m, m, 3, p, p)
    return np.ascontiguousarray(blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * p, columns * p, 3))

"""Random smooth warps: the same anatomy in a body of another shape, posture and place on the table.

A small model that sees few scans learns where the organs of these few people lie. A warp is drawn as

- a rotation about the middle of the picture, normal, sigma `TURN_DEGREES`,
- a factor in each direction whose logarithm is normal, sigma `SCALE_SIGMA`, and a shear, sigma `SHEAR_SIGMA`,
- a displacement of each of `KNOTS` x `KNOTS` evenly spread points, sigma `SHIFT_RATIO` of the shorter side, smooth
  (bicubic) between them.

Boxes cannot be warped without loss: draw them anew round a label map that went through the same warp. Nothing is ever
mirrored, so left stays left.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TURN_DEGREES = 7.0
SCALE_SIGMA = 0.1
SHEAR_SIGMA = 0.08
KNOTS = 5
SHIFT_RATIO = 0.035

Pixels = NDArray[np.uint8]
Coordinates = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Warp:
    """Places of the stored picture that a warped one shows; what lies outside the picture is black.

    Units: px, with whole numbers at the centres of pixels.

    Attributes:
        rows: (H, W) row that each pixel shows.
        columns: (H, W) column that it shows.
    """

    rows: Coordinates
    columns: Coordinates

    def picture(self, pixels: Pixels) -> Pixels:
        """Return a picture under the warp, linear between pixels.

        Shapes: (H, W, 3) to the same.
        """
        height, width = pixels.shape[:2]
        padded = np.pad(pixels, ((1, 2), (1, 2), (0, 0))).astype(np.float32)
        rows, columns = self.rows.clip(-1, height) + 1, self.columns.clip(-1, width) + 1
        top, left = rows.astype(np.intp), columns.astype(np.intp)
        down, across = (rows - top)[..., None], (columns - left)[..., None]
        upper = padded[top, left] * (1 - across) + padded[top, left + 1] * across
        lower = padded[top + 1, left] * (1 - across) + padded[top + 1, left + 1] * across
        return (upper * (1 - down) + lower * down).round().astype(np.uint8)

    def labels(self, mask: Pixels) -> Pixels:
        """Return a label map under the warp: of each place the nearest pixel's value.

        Shapes: (H, W) to the same.
        """
        height, width = mask.shape
        rows, columns = np.rint(self.rows).astype(np.intp), np.rint(self.columns).astype(np.intp)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        return np.where(inside, mask[rows.clip(0, height - 1), columns.clip(0, width - 1)], 0).astype(np.uint8)


def random_warp(seed: int, size: tuple[int, int]) -> Warp:
    """Draw a warp; the same seed and size give the same one.

    Args:
        seed: seed of every number drawn.
        size: (width, height) of the stored picture in px.
    """
    width, height = size
    rng = np.random.default_rng(seed)
    turn = rng.normal(0.0, math.radians(TURN_DEGREES))
    across, down = np.exp(rng.normal(0.0, SCALE_SIGMA, 2))
    shear = rng.normal(0.0, SHEAR_SIGMA)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    (a, b), (c, d) = rotation @ np.array([[across, shear], [0.0, down]])
    y = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    x = np.arange(width, dtype=np.float32)[None] - (width - 1) / 2
    shifts = rng.normal(0.0, SHIFT_RATIO * min(width, height), (2, KNOTS, KNOTS)).astype(np.float32)
    right, lower = (np.asarray(Image.fromarray(s).resize(size, Image.Resampling.BICUBIC)) for s in shifts)
    columns = (a * x + b * y + (width - 1) / 2 + right).astype(np.float32)
    return Warp((c * x + d * y + (height - 1) / 2 + lower).astype(np.float32), columns)

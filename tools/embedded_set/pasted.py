"""Training pictures of lungs with a lesion that is not there: cut out of one slice and pasted into another.

The one training case with a lesion in the lung shows it in three slices and at one place. Here it lies elsewhere, in
another size and turned, within the lungs of the same scan, so that a model can learn what a lesion looks like and not
where this one is. What is said of such a picture is true of the picture alone; its boxes are derived, not drawn.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from medmo_core.datasets.embedded.facts import Structure

from .tables import CORNERS_TOUCH, Table, Writer, connected_parts

SCALES = (0.8, 3.0)
"""Least and largest size, over the lesion's own."""
BRIGHTEST_LUNG = 140
"""Grey level that divides lung from the tissue round it."""
MIN_LUNG_PX = 8000
"""Area of the lungs in a slice that a lesion is pasted into."""
EDGE_PX = 6
"""Distance that the middle of a lesion keeps from the edge of the lung."""
GREY_SIGMA = 8.0
"""Standard deviation of a lesion's change of grey level."""
MARGIN = 3
"""Pixels round a lesion that are cut out with it, to blend."""
BLEND_PX, HALF = 0.8, 0.5

StructuresOf = Callable[[np.ndarray, str], list[Structure]]


def add_pasted(
    writer: Writer,
    base: Table,
    donors: list[tuple[np.ndarray, np.ndarray]],
    hosts: list[np.ndarray],
    structures_of: StructuresOf,
    number: int,
) -> None:
    """Add pictures of one case, each with one pasted lesion of the lung.

    Args:
        writer: where they go.
        base: facts that all slices of the case share.
        donors: uint8 slice (H, W) and mask of its lesion, of the slices that have one.
        hosts: uint8 slices (H, W) without a lesion; those that show little of the lungs are left out.
        structures_of: function that describes the lesions of a mask, with the patient's side.
        number: number of pictures.
    """
    rng = np.random.default_rng(0)
    hosts = [host for host in hosts if lungs_of(host).sum() >= MIN_LUNG_PX]
    for index in range(number):
        plane, mask = donors[int(rng.integers(len(donors)))]
        host = hosts[index * len(hosts) // number]
        places = np.argwhere(np.asarray(ndimage.distance_transform_edt(lungs_of(host))) >= EDGE_PX)
        row, column = places[int(rng.integers(len(places)))]
        patch, alpha = turned(plane, mask, rng)
        shown, pasted = paste(host, patch + rng.normal(0.0, GREY_SIGMA), alpha, int(row), int(column))
        side = "right" if column < host.shape[1] / 2 else "left"
        structures = [replace(s, origin="derived") for s in structures_of(pasted.astype(np.int32), side)]
        table = replace(base, id=f"{base.source}-{index:02d}", structures=structures)
        writer.add(table, shown, connected_parts(pasted, CORNERS_TOUCH))


def lungs_of(plane: np.ndarray) -> np.ndarray:
    """Return where in a slice (H, W) the lungs are, with their vessels."""
    parts = connected_parts(plane < BRIGHTEST_LUNG)
    outside = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    lungs = (parts > 0) & ~np.isin(parts, outside)
    return np.asarray(ndimage.binary_closing(lungs, iterations=2))


def turned(plane: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a lesion with its surroundings, turned and enlarged at random: grey levels and mask, as float64."""
    rows, columns = np.nonzero(mask)
    y, x = (slice(max(int(v.min()) - MARGIN, 0), int(v.max()) + 1 + MARGIN) for v in (rows, columns))
    scale, angle = np.exp(rng.uniform(*np.log(SCALES))), rng.uniform(0.0, 360.0)
    cut = (plane[y, x].astype(np.float64), (mask[y, x] > 0).astype(np.float64))
    patch, shape = (ndimage.rotate(ndimage.zoom(c, scale, order=1), angle, order=1, mode="nearest") for c in cut)
    return patch, shape


def paste(
    host: np.ndarray, patch: np.ndarray, alpha: np.ndarray, row: int, column: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a slice with a patch blended in about a pixel, and where the patch covers it at least half."""
    height, width = host.shape
    top, left = row - patch.shape[0] // 2, column - patch.shape[1] // 2
    y, x = slice(max(top, 0), min(top + patch.shape[0], height)), slice(max(left, 0), min(left + patch.shape[1], width))
    inner = slice(y.start - top, y.stop - top), slice(x.start - left, x.stop - left)
    cover = np.zeros(host.shape)
    cover[y, x] = alpha[inner]
    cover = ndimage.gaussian_filter(cover, BLEND_PX)
    whole = host.astype(np.float64)
    whole[y, x] += cover[y, x] * (patch[inner] - whole[y, x])
    return whole.round().clip(0, 255).astype(np.uint8), cover >= HALF

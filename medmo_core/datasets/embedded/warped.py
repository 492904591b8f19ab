"""Facts tables of warped images: what a slice would show in a body of another shape."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .facts import MIN_AREA_PX, ImageFacts, Structure, mask_of


def warp_facts(record: ImageFacts, seed: int) -> ImageFacts:
    """Return the facts table of an image under a random warp, its boxes drawn anew round the warped masks.

    Structures of which only the box is known are neither visible nor absent then. Areas follow the warp; a diameter would have to be measured anew and is left out. An image without masks comes back
    as it is.

    Args:
        record: facts table of a stored image.
        seed: seed of the warp.
    """
    warped = replace(record, warp=seed)
    mask = mask_of(warped)
    if mask is None:
        return record
    structures: list[Structure] = []
    traces = set(record.traces)
    for structure in record.structures:
        hit = mask == structure.mask_value
        area = int(hit.sum())
        if structure.mask_value is None or area < MIN_AREA_PX:
            traces.add(structure.name)
            continue
        rows, columns = np.nonzero(hit.any(1))[0], np.nonzero(hit.any(0))[0]
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        area_mm2 = None if record.spacing_mm is None else area * math.prod(record.spacing_mm)
        structures.append(replace(structure, xyxy_px=box, area_mm2=area_mm2, diameter_mm=None))
    return replace(warped, structures=tuple(structures), traces=tuple(sorted(traces)))

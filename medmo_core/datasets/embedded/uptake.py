"""Structures that contrast agent brightens in CT, and by how much.

Typical rises in Hounsfield units at a usual dose, rounded, early (about 30 s after injection) and late (about 70 s):
Bae, Intravenous contrast medium administration and scan timing at CT, Radiology 2010, 256:32-61. They make training
pictures and no statement about a patient. What is not listed, such as lung, bone, bile and urine, stays as it is.
"""

from __future__ import annotations

from ...data.records.sample import Outlines
from .facts import ImageFacts

RISES_HU: dict[str, tuple[float, float]] = {
    "aorta": (250, 110),
    "inferior vena cava": (30, 100),
    "portal vein": (40, 120),
    "liver": (12, 55),
    "spleen": (80, 70),
    "kidney": (110, 140),
    "pancreas": (70, 50),
    "adrenal gland": (60, 50),
    "stomach": (25, 25),
    "duodenum": (40, 40),
    "small bowel": (40, 40),
    "colon": (20, 25),
    "prostate": (30, 40),
    "psoas muscle": (5, 12),
    "gluteal muscle": (5, 12),
    "back muscle": (5, 12),
}
"""Name without its side -> rise in the arterial and in the venous phase."""
GREY_LEVELS = 255


def outlines_of(record: ImageFacts) -> Outlines | None:
    """Return the label map of an image, with the uptake of its structures where it was taken without contrast agent."""
    if record.mask is None:
        return None
    if record.modality != "CT" or record.contrast != "none" or record.window is None:
        return Outlines(record.mask)
    level = GREY_LEVELS / record.window[1]
    uptake: list[tuple[int, float, float]] = []
    for structure in record.structures:
        rise = RISES_HU.get(structure.name.removeprefix("left ").removeprefix("right "))
        if rise is not None and structure.mask_value is not None:
            uptake.append((structure.mask_value, level * rise[0], level * rise[1]))
    return Outlines(record.mask, tuple(uptake))

"""Modules, models, data, rewards and metrics for medical models that point at what they say.

The names used most; everything else is imported from the file that holds it.
"""

from .accelerate import Accelerated, accelerate, restore
from .batch import Batch, PatchSpec
from .boxes import Boxes, parse_boxes, print_boxes
from .models.medmo import MedMO
from .profile import CheckpointProfile

__all__ = [
    "Accelerated",
    "Batch",
    "Boxes",
    "CheckpointProfile",
    "MedMO",
    "PatchSpec",
    "accelerate",
    "parse_boxes",
    "print_boxes",
    "restore",
]

"""Modules, models, data, rewards and metrics for medical models that point at what they say.

The names used most; everything else is imported from the file that holds it.
"""

from .batch import Batch, PatchSpec
from .boxes import Boxes, parse_boxes, print_boxes
from .models.medmo import MedMO
from .profile import CheckpointProfile

__all__ = ["Batch", "Boxes", "CheckpointProfile", "MedMO", "PatchSpec", "parse_boxes", "print_boxes"]

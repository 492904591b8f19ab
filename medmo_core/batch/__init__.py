"""Packed documents with their images, positions and patches: what a model reads."""

from .batch import IGNORE_INDEX, Batch
from .patch_spec import PatchSpec
from .positions import mrope_position_ids

__all__ = ["IGNORE_INDEX", "Batch", "PatchSpec", "mrope_position_ids"]

"""Projection of vision features to tokens, all mergers of a tower at once: norm, merge, linear, GELU, linear."""

from .op import projector
from .reference import ProjectorWeights, projector_reference

__all__ = ["ProjectorWeights", "projector", "projector_reference"]

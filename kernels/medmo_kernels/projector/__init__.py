"""From vision features to decoder tokens: norm, 2x2 merge, linear, erf-GELU, linear, all mergers of a tower at once."""

from .op import projector
from .reference import ProjectorWeights, projector_reference

__all__ = ["ProjectorWeights", "projector", "projector_reference"]

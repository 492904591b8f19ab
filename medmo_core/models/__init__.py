"""Models: composition, sizes, weights and generation."""

from ..generation.decoding import Generation
from .config import PRESETS, ModelConfig, TextConfig, VisionConfig
from .medmo import MedMO
from .vision_tower import VisionTower

__all__ = ["PRESETS", "Generation", "MedMO", "ModelConfig", "TextConfig", "VisionConfig", "VisionTower"]

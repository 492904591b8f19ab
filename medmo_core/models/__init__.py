"""Models: composition, sizes, weights and generation."""

from .config import PRESETS, ModelConfig, TextConfig, VisionConfig
from .generation import Generation
from .medmo import MedMO
from .vision_tower import VisionTower

__all__ = ["PRESETS", "Generation", "MedMO", "ModelConfig", "TextConfig", "VisionConfig", "VisionTower"]

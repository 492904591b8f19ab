"""Small building blocks with plain arguments; each can be used in any model."""

from ..generation.kv_cache import KVCache
from .attention import TextAttention, VisionAttention
from .mlp import MLP, SwiGLU
from .norm import RMSNorm
from .patch_embed import PatchEmbed, grid_coordinates, position_coordinates
from .projector import PatchMerger, Projector
from .rope import apply_rope, axial_table, merge_order, mrope_table

__all__ = [
    "KVCache",
    "MLP",
    "PatchEmbed",
    "PatchMerger",
    "Projector",
    "RMSNorm",
    "SwiGLU",
    "TextAttention",
    "VisionAttention",
    "apply_rope",
    "axial_table",
    "grid_coordinates",
    "merge_order",
    "mrope_table",
    "position_coordinates",
]

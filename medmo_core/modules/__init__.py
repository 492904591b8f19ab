"""Small building blocks with plain arguments; each can be used in a model of its own."""

from .attention import TextAttention, VisionAttention
from .mlp import MLP, SwiGLU
from .norm import RMSNorm
from .patch_embed import PatchEmbed, bilinear_taps, embed_patches, interpolate_positions
from .projector import PatchMerger, Projector
from .rope import apply_rope, axial_table, merge_order, mrope_table

__all__ = [
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
    "bilinear_taps",
    "embed_patches",
    "interpolate_positions",
    "merge_order",
    "mrope_table",
]

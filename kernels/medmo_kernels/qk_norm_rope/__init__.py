"""Per-head RMSNorm of queries and keys and their rotary positions in one pass; in place, and into a cache."""

from .op import qk_norm_rope, qk_norm_rope_, qk_norm_rope_cache_
from .reference import qk_norm_rope_cache_reference, qk_norm_rope_reference

__all__ = [
    "qk_norm_rope",
    "qk_norm_rope_",
    "qk_norm_rope_cache_",
    "qk_norm_rope_cache_reference",
    "qk_norm_rope_reference",
]

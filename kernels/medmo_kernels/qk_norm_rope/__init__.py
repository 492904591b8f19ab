"""Per-head RMSNorm of queries and keys and their rotary positions in one pass; a second form works in place."""

from .op import qk_norm_rope, qk_norm_rope_
from .reference import qk_norm_rope_reference

__all__ = ["qk_norm_rope", "qk_norm_rope_", "qk_norm_rope_reference"]

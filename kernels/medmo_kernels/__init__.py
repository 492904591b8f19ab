"""Ops for multimodal medical models. One op is one room: `reference.py` defines it, `op.py` registers it."""

from .attention import attention, attention_reference
from .box_match import assign, box_match
from .box_reward import BoxReward, box_reward
from .decode_attention import decode_attention
from .giou import box_terms, giou, pairwise_box_terms, pairwise_giou
from .patch_embed import patch_embed
from .projector import ProjectorWeights, projector
from .qk_norm_rope import qk_norm_rope, qk_norm_rope_, qk_norm_rope_cache_
from .runtime import native_status

__all__ = [
    "BoxReward",
    "ProjectorWeights",
    "assign",
    "attention",
    "attention_reference",
    "box_match",
    "box_reward",
    "box_terms",
    "decode_attention",
    "giou",
    "native_status",
    "pairwise_box_terms",
    "pairwise_giou",
    "patch_embed",
    "projector",
    "qk_norm_rope",
    "qk_norm_rope_",
    "qk_norm_rope_cache_",
]

"""Ops for multimodal medical models. One op is one room: `reference.py` defines it, `op.py` registers it."""

from .attention import attention, attention_reference
from .box_match import assign, box_match
from .box_reward import BoxReward, box_reward
from .giou import giou, pairwise_giou
from .runtime import native_status

__all__ = [
    "BoxReward",
    "assign",
    "attention",
    "attention_reference",
    "box_match",
    "box_reward",
    "giou",
    "native_status",
    "pairwise_giou",
]

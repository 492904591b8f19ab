"""Others' functions for the same work, by op: called with the op's own arguments, prepared once outside the clock.

A peer is reported absent, with the reason, where its package or a GPU is missing.
"""

from . import attention, boxes, decode_attention, patch_embed, projector, qk_norm_rope
from .peer import Peer

PEERS: dict[str, dict[str, Peer]] = {
    "patch_embed": patch_embed.PEERS,
    "attention": attention.PEERS,
    "qk_norm_rope": qk_norm_rope.PEERS,
    "qk_norm_rope_": qk_norm_rope.PEERS,
    "projector": projector.PEERS,
    "decode_attention": decode_attention.PEERS,
    "box_match": boxes.MATCH,
    "assign": boxes.ASSIGN,
    "box_reward": boxes.REWARD,
}
"""By op, then by the name shown in the tables."""

EXACT = {"box_match": boxes.MATCH[boxes.SCIPY], "assign": boxes.ASSIGN[boxes.SCIPY],
         "box_reward": boxes.REWARD[boxes.SCIPY]}  # fmt: skip
"""What stands for a reference that is a loop in Python: it finds the same optimum, in float64 for float64."""

__all__ = ["EXACT", "PEERS", "Peer"]

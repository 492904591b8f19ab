"""Reward of each completion for its ragged boxes. Built of `box_match` (its op, checks, kernel and reference) and of
`giou` (reference and kernel).
"""

from .op import BoxReward, box_reward
from .reference import FORMULAS, box_reward_reference

__all__ = ["FORMULAS", "BoxReward", "box_reward", "box_reward_reference"]

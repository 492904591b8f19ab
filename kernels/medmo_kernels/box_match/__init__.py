"""Optimal one-to-one assignment of predicted to true boxes. Costs are built of the room `giou`: its reference
and its kernel's functions.
"""

from .op import assign, box_match
from .reference import COSTS, assign_reference, box_match_reference

__all__ = ["COSTS", "assign", "assign_reference", "box_match", "box_match_reference"]

"""Generalised IoU of boxes, pair by pair or every pair of two sets."""

from .op import giou, pairwise_giou
from .reference import giou_reference, overlap_terms, pairwise_giou_reference

__all__ = ["giou", "giou_reference", "overlap_terms", "pairwise_giou", "pairwise_giou_reference"]

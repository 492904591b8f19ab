"""IoU, generalised IoU and corner distance of boxes: pair by pair, or all pairs of two sets, of ragged batches too."""

from .op import box_terms, giou, pairwise_box_terms, pairwise_giou
from .reference import (
    box_terms_reference,
    giou_reference,
    overlap_terms,
    pairwise_box_terms_reference,
    pairwise_giou_reference,
)

__all__ = [
    "box_terms",
    "box_terms_reference",
    "giou",
    "giou_reference",
    "overlap_terms",
    "pairwise_box_terms",
    "pairwise_box_terms_reference",
    "pairwise_giou",
    "pairwise_giou_reference",
]

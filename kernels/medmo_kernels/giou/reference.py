"""The definition of IoU, generalised IoU and corner distance of boxes.

Shapes: N pairs; P and T boxes of two sets; B problems; last axis x1, y1, x2, y2.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Sets(NamedTuple):
    """Two sets of boxes of which all pairs are scored, problem by problem.

    Attributes:
        pred: (..., P, 4) predicted boxes.
        target: (..., T, 4) target boxes.
        pred_offsets: (B + 1,) int64 starts of the problems in `pred`; None: the leading axes are the problems.
        target_offsets: (B + 1,) int64 starts of the problems in `target`; None like `pred_offsets`.
    """

    pred: Tensor
    target: Tensor
    pred_offsets: Tensor | None
    target_offsets: Tensor | None


def overlap_terms(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and GIoU of broadcast pairs of boxes.

    Numerics: inside and out fp32, float64 for float64. A side with x2 < x1 counts as 0. A union of no area gives
        IoU 0, a hull of no area takes nothing off: a box without area overlaps nothing, not even itself.

    Args:
        pred: (..., 4) boxes.
        target: (..., 4) boxes that broadcast against `pred`.

    Returns:
        Two tensors of the broadcast shape without the last axis: IoU in [0, 1], GIoU in [-1, 1].
    """
    p, t = (box.to(score_dtype(pred, target)) for box in (pred, target))
    p_sides, t_sides = ((b[..., 2:] - b[..., :2]).clamp(min=0) for b in (p, t))
    shared = (torch.minimum(p[..., 2:], t[..., 2:]) - torch.maximum(p[..., :2], t[..., :2])).clamp(min=0)
    around = (torch.maximum(p[..., 2:], t[..., 2:]) - torch.minimum(p[..., :2], t[..., :2])).clamp(min=0)
    inter, hull = shared[..., 0] * shared[..., 1], around[..., 0] * around[..., 1]
    union = p_sides[..., 0] * p_sides[..., 1] + t_sides[..., 0] * t_sides[..., 1] - inter
    # The inner `where` keeps 0 / 0 out of the graph: its gradient would be NaN even where it is not chosen.
    iou = torch.where(union > 0, inter / torch.where(union > 0, union, 1), torch.where(union.isnan(), union, 0))
    empty = torch.where(hull > 0, (hull - union) / torch.where(hull > 0, hull, 1), 0)
    return iou, iou - empty


def score_dtype(pred: Tensor, target: Tensor) -> torch.dtype:
    """Return the dtype of scores: float64 where a side is, else fp32."""
    return torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32


def box_terms_reference(pred: Tensor, target: Tensor) -> Tensor:
    """Return IoU, GIoU and corner distance of N pairs, stacked on a last axis; see `box_terms`."""
    wide = score_dtype(pred, target)
    return torch.stack([*overlap_terms(pred, target), (pred.to(wide) - target.to(wide)).abs().sum(-1)], dim=-1)


def giou_reference(pred: Tensor, target: Tensor) -> Tensor:
    """Score N box pairs by generalised IoU; see `giou`."""
    return overlap_terms(pred, target)[1]


def pairwise_giou_reference(pred: Tensor, target: Tensor) -> Tensor:
    """Score every box of one set against every box of another; see `pairwise_giou`."""
    return overlap_terms(pred[..., :, None, :], target[..., None, :, :])[1]


def pairwise_box_terms_reference(
    pred: Tensor, target: Tensor, pred_offsets: Tensor, target_offsets: Tensor, *, max_target: int
) -> Tensor:
    """Return the terms of all pairs within each problem of a ragged batch; see `pairwise_box_terms`."""
    others, inside = ragged_pairs(len(pred), pred_offsets, target_offsets, max_target)
    # One row of zeros below the targets serves the columns that a problem lacks: shapes stay static.
    padded = torch.cat([target, target.new_zeros((1, 4))])
    terms = box_terms_reference(pred[:, None], padded[torch.where(inside, others, -1)])
    return torch.where(inside[..., None], terms, 0)


def ragged_pairs(num_pred: int, pred_offsets: Tensor, target_offsets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the target of each (predicted box, column) of a ragged batch, and whether its problem has such a column.

    Returns:
        Two (num_pred, width) tensors, made on the device without a copy to the host.
    """
    problem = torch.bucketize(torch.arange(num_pred, device=pred_offsets.device), pred_offsets[1:], right=True)
    others = target_offsets[problem][:, None] + torch.arange(width, device=pred_offsets.device)
    return others, others < target_offsets[problem + 1][:, None]

"""The definition of IoU and generalised IoU of boxes.

Shapes: N pairs; P and T boxes of two sets; last axis x1, y1, x2, y2.
"""

import torch
from torch import Tensor


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
    wide = torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32
    p, t = pred.to(wide), target.to(wide)
    p_sides, t_sides = ((b[..., 2:] - b[..., :2]).clamp(min=0) for b in (p, t))
    shared = (torch.minimum(p[..., 2:], t[..., 2:]) - torch.maximum(p[..., :2], t[..., :2])).clamp(min=0)
    around = (torch.maximum(p[..., 2:], t[..., 2:]) - torch.minimum(p[..., :2], t[..., :2])).clamp(min=0)
    inter, hull = shared[..., 0] * shared[..., 1], around[..., 0] * around[..., 1]
    union = p_sides[..., 0] * p_sides[..., 1] + t_sides[..., 0] * t_sides[..., 1] - inter
    # The inner `where` keeps 0 / 0 out of the graph: its gradient would be NaN even where it is not chosen.
    iou = torch.where(union > 0, inter / torch.where(union > 0, union, 1), torch.where(union.isnan(), union, 0))
    empty = torch.where(hull > 0, (hull - union) / torch.where(hull > 0, hull, 1), 0)
    return iou, iou - empty


def giou_reference(pred: Tensor, target: Tensor) -> Tensor:
    """Score N box pairs by generalised IoU; see `giou`."""
    return overlap_terms(pred, target)[1]


def pairwise_giou_reference(pred: Tensor, target: Tensor) -> Tensor:
    """Score every box of one set against every box of another; see `pairwise_giou`."""
    return overlap_terms(pred[..., :, None, :], target[..., None, :, :])[1]

"""The gradients of the box scores in torch ops: the closed form that serves the CPU, and float64."""

import torch
from torch import Tensor

from .reference import Sets, ragged_pairs


def aligned_backward(pred: Tensor, target: Tensor, grad: Tensor, giou_only: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of both sides of N pairs, in their dtypes."""
    grad_pred, grad_target = _closed_form(pred, target, _per_term(grad, giou_only))
    return grad_pred.to(pred.dtype), grad_target.to(target.dtype)


def pairwise_backward(sets: Sets, grad: Tensor, giou_only: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of both sets, in their dtypes."""
    pred, target, pred_offsets, target_offsets = sets
    by_term = _per_term(grad, giou_only)
    if pred_offsets is None or target_offsets is None:
        grad_pred, grad_target = _closed_form(pred[..., :, None, :], target[..., None, :, :], by_term)
        return grad_pred.sum(-2).to(pred.dtype), grad_target.sum(-3).to(target.dtype)
    others, inside = ragged_pairs(len(pred), pred_offsets, target_offsets, grad.shape[1])
    row = torch.where(inside, others, len(target))  # the last row stands for no target
    padded = torch.cat([target, target.new_zeros((1, 4))])
    by_term = tuple(torch.where(inside, by, 0) for by in by_term)
    grad_pred, grad_target = _closed_form(pred[:, None], padded[row], by_term)
    summed = grad_target.new_zeros((len(target) + 1, 4)).index_add_(0, row.flatten(), grad_target.reshape(-1, 4))
    return grad_pred.sum(1).to(pred.dtype), summed[:-1].to(target.dtype)


def _per_term(grad: Tensor, giou_only: bool) -> tuple[Tensor, ...]:
    """Return the gradients of IoU, GIoU and corner distance."""
    return (torch.zeros_like(grad), grad, torch.zeros_like(grad)) if giou_only else grad.unbind(-1)


def _closed_form(pred: Tensor, target: Tensor, by_term: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the gradients of every pair for both boxes.

    With inter I, union U = A + B - I and hull C, IoU = I/U and GIoU = I/U + U/C - 1. Ties of a minimum or maximum share
    the gradient evenly, and a side of exactly 0 still passes it, as in torch.
    """
    by_iou, by_giou, by_l1 = by_term
    p, t = (box.to(by_giou.dtype) for box in (pred, target))
    p_raw, t_raw = p[..., 2:] - p[..., :2], t[..., 2:] - t[..., :2]
    p_sides, t_sides = p_raw.clamp(min=0), t_raw.clamp(min=0)
    shared_raw = torch.minimum(p[..., 2:], t[..., 2:]) - torch.maximum(p[..., :2], t[..., :2])
    around_raw = torch.maximum(p[..., 2:], t[..., 2:]) - torch.minimum(p[..., :2], t[..., :2])
    shared, around = shared_raw.clamp(min=0), around_raw.clamp(min=0)
    inter, hull = shared.prod(-1), around.prod(-1)
    union = p_sides.prod(-1) + t_sides.prod(-1) - inter
    per_union = torch.where(union > 0, 1 / torch.where(union > 0, union, 1), 0)
    per_hull = torch.where(hull > 0, 1 / torch.where(hull > 0, hull, 1), 0)
    by_ratio = (by_iou + by_giou) * per_union
    by_union = by_giou * per_hull - by_ratio * inter * per_union
    by_hull = -by_giou * union * per_hull**2
    by_inter = by_ratio - by_union

    def by_sides(by_area: Tensor, sides: Tensor, raw: Tensor) -> Tensor:
        return by_area[..., None] * sides.flip(-1) * (raw >= 0)

    by_shared = by_sides(by_inter, shared, shared_raw)
    by_around = by_sides(by_hull, around, around_raw)
    sign_high, sign_low = torch.sign(p[..., 2:] - t[..., 2:]), torch.sign(p[..., :2] - t[..., :2])
    high, low = 0.5 * (1 + sign_high), 0.5 * (1 + sign_low)  # 1 where pred is the larger, 1/2 on a tie
    l1_high, l1_low = by_l1[..., None] * sign_high, by_l1[..., None] * sign_low
    p_own, t_own = by_sides(by_union, p_sides, p_raw), by_sides(by_union, t_sides, t_raw)
    grad_pred = torch.cat(
        [
            -p_own - by_shared * low - by_around * (1 - low) + l1_low,
            p_own + by_shared * (1 - high) + by_around * high + l1_high,
        ],
        dim=-1,
    )
    grad_target = torch.cat(
        [
            -t_own - by_shared * (1 - low) - by_around * low - l1_low,
            t_own + by_shared * high + by_around * (1 - high) - l1_high,
        ],
        dim=-1,
    )
    return grad_pred, grad_target

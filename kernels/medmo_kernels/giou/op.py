"""Registration of giou. CPU and CUDA run the reference forward; the backward is its closed form on both."""

from typing import Any

import torch
from torch import Tensor

from .reference import giou_reference, pairwise_giou_reference


def giou(pred: Tensor, target: Tensor) -> Tensor:
    """Score N box pairs by generalised IoU.

    Shapes: N pairs; last axis x1, y1, x2, y2.
    Units: any, but one frame for both; the score has none.
    Numerics: inside and out fp32, float64 for float64. A side with x2 < x1 counts as 0; a box without area has IoU 0
        with every box.

    Args:
        pred: (N, 4) predicted boxes.
        target: (N, 4) target boxes, on the device of `pred`.

    Returns:
        (N,) scores in [-1, 1]; 1 where two boxes with area are equal.

    Raises:
        ValueError: the shapes differ or the last axis is not 4.

    Reference: Rezatofighi et al. 2019, arXiv 1902.09630, algorithm 1.
    """
    if pred.ndim != 2 or pred.shape[-1] != 4 or pred.shape != target.shape:
        raise ValueError(f"giou: pred {tuple(pred.shape)} and target {tuple(target.shape)}, expected (N, 4) twice")
    return _giou(pred, target)


def pairwise_giou(pred: Tensor, target: Tensor) -> Tensor:
    """Score every box of one set against every box of another by generalised IoU.

    Shapes: P and T boxes, any leading batch axes alike.
    Units, Numerics: as `giou`.

    Args:
        pred: (..., P, 4) boxes.
        target: (..., T, 4) boxes, on the device of `pred`.

    Returns:
        (..., P, T) scores in [-1, 1].

    Raises:
        ValueError: the batch axes differ or a last axis is not 4.
    """
    alike = pred.ndim >= 2 and target.ndim >= 2 and pred.shape[:-2] == target.shape[:-2]
    if not alike or pred.shape[-1] != 4 or target.shape[-1] != 4:
        raise ValueError(
            f"pairwise_giou: pred {tuple(pred.shape)} and target {tuple(target.shape)}, "
            "expected (..., P, 4) and (..., T, 4) with equal leading axes"
        )
    return _pairwise_giou(pred, target)


def _score_dtype(pred: Tensor, target: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32


@torch.library.custom_op("medmo_kernels::giou", mutates_args=())
def _giou(pred: Tensor, target: Tensor) -> Tensor:
    return giou_reference(pred, target)


@_giou.register_fake
def _(pred: Tensor, target: Tensor) -> Tensor:
    return pred.new_empty(pred.shape[:1], dtype=_score_dtype(pred, target))


@torch.library.custom_op("medmo_kernels::pairwise_giou", mutates_args=())
def _pairwise_giou(pred: Tensor, target: Tensor) -> Tensor:
    return pairwise_giou_reference(pred, target)


@_pairwise_giou.register_fake
def _(pred: Tensor, target: Tensor) -> Tensor:
    return pred.new_empty((*pred.shape[:-1], target.shape[-2]), dtype=_score_dtype(pred, target))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    pred, target = ctx.saved_tensors
    grad_pred, grad_target = _closed_form(pred, target, grad)
    return grad_pred.to(pred.dtype), grad_target.to(target.dtype)


def _pairwise_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    pred, target = ctx.saved_tensors
    grad_pred, grad_target = _closed_form(pred[..., :, None, :], target[..., None, :, :], grad)
    return grad_pred.sum(-2).to(pred.dtype), grad_target.sum(-3).to(target.dtype)


_giou.register_autograd(_backward, setup_context=_save)
_pairwise_giou.register_autograd(_pairwise_backward, setup_context=_save)


def _closed_form(pred: Tensor, target: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of every pair for both boxes.

    With inter I, union U = A + B - I and hull C, GIoU = I/U + U/C - 1. Ties of a minimum or maximum share the gradient
    evenly, and a side of exactly 0 still passes it, as in torch.
    """
    p, t = (box.to(grad.dtype) for box in (pred, target))
    p_raw, t_raw = p[..., 2:] - p[..., :2], t[..., 2:] - t[..., :2]
    p_sides, t_sides = p_raw.clamp(min=0), t_raw.clamp(min=0)
    shared_raw = torch.minimum(p[..., 2:], t[..., 2:]) - torch.maximum(p[..., :2], t[..., :2])
    around_raw = torch.maximum(p[..., 2:], t[..., 2:]) - torch.minimum(p[..., :2], t[..., :2])
    shared, around = shared_raw.clamp(min=0), around_raw.clamp(min=0)
    inter, hull = shared.prod(-1), around.prod(-1)
    union = p_sides.prod(-1) + t_sides.prod(-1) - inter
    safe_union, safe_hull = torch.where(union > 0, union, 1), torch.where(hull > 0, hull, 1)
    by_union = torch.where(union > 0, -inter / safe_union**2, 0) + torch.where(hull > 0, 1 / safe_hull, 0)
    by_hull = torch.where(hull > 0, -union / safe_hull**2, 0)
    by_inter = torch.where(union > 0, 1 / safe_union, 0) - by_union

    def by_sides(by_area: Tensor, sides: Tensor, raw: Tensor) -> Tensor:
        return (grad * by_area)[..., None] * sides.flip(-1) * (raw >= 0)

    by_shared = by_sides(by_inter, shared, shared_raw)
    by_around = by_sides(by_hull, around, around_raw)
    high = 0.5 * (1 + torch.sign(p[..., 2:] - t[..., 2:]))  # 1 where pred is the larger, 1/2 on a tie
    low = 0.5 * (1 + torch.sign(p[..., :2] - t[..., :2]))
    p_own, t_own = by_sides(by_union, p_sides, p_raw), by_sides(by_union, t_sides, t_raw)
    grad_pred = torch.cat(
        [-p_own - by_shared * low - by_around * (1 - low), p_own + by_shared * (1 - high) + by_around * high], dim=-1
    )
    grad_target = torch.cat(
        [-t_own - by_shared * (1 - low) - by_around * low, t_own + by_shared * high + by_around * (1 - high)], dim=-1
    )
    return grad_pred, grad_target

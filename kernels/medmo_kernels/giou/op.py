"""Registration of giou. CUDA: Triton kernels, forward and backward. CPU, and float64: the reference forward and the
closed form of its gradient.
"""

from typing import Any

import torch
from torch import Tensor

from .. import back_ends
from ..back_ends import Choice
from ..transforms import refuse_transforms
from . import plain
from .reference import (
    Sets,
    box_terms_reference,
    giou_reference,
    pairwise_box_terms_reference,
    pairwise_giou_reference,
    score_dtype,
)

ROOM = "giou"
BACK_ENDS = ("triton", "reference")
"""Names that the table may use."""
for _op in ("giou", "box_terms", "pairwise_giou", "pairwise_box_terms"):
    back_ends.declare(ROOM, _op, BACK_ENDS)
SHAPE = "fp32, fp16, bf16"
"""The one class of shapes in the table: every op is one launch, whatever the number of boxes."""


def giou(pred: Tensor, target: Tensor) -> Tensor:
    """Score N box pairs by generalised IoU.

    Shapes: N pairs; last axis x1, y1, x2, y2.
    Units: any, but one frame for both; the score has none.
    Numerics: inside and out fp32, float64 for float64; whole numbers are exact up to 2^24. A side with x2 < x1 counts
        as 0; a box without area has IoU 0 with every box. Gradients: a tie of a minimum or maximum shares them evenly,
        as in torch.

    Args:
        pred: (N, 4) predicted boxes.
        target: (N, 4) target boxes, on the device of `pred`.

    Returns:
        (N,) scores in [-1, 1]; 1 where two boxes with area are equal.

    Raises:
        ValueError: the shapes differ or the last axis is not 4.

    Reference: Rezatofighi et al. 2019, arXiv 1902.09630, algorithm 1.
    """
    _check_aligned("giou", pred, target)
    refuse_transforms("giou", pred, target)
    return _giou(pred, target, True)


def box_terms(pred: Tensor, target: Tensor) -> Tensor:
    """Return IoU, GIoU and corner distance of N box pairs, the terms of box losses and costs.

    Shapes, Units, Numerics: as `giou`; the corner distance is the sum of the four absolute corner differences, in the
        unit of the boxes.

    Args:
        pred: (N, 4) predicted boxes.
        target: (N, 4) target boxes, on the device of `pred`.

    Returns:
        (N, 3): IoU, GIoU, corner distance.

    Raises:
        ValueError: the shapes differ or the last axis is not 4.
    """
    _check_aligned("box_terms", pred, target)
    refuse_transforms("box_terms", pred, target)
    return _giou(pred, target, False)


def pairwise_giou(pred: Tensor, target: Tensor) -> Tensor:
    """Score every box of one set against every box of another by generalised IoU.

    Shapes: P and T boxes, with the same leading batch axes, if any.
    Units, Numerics: as `giou`.

    Args:
        pred: (..., P, 4) boxes.
        target: (..., T, 4) boxes, on the device of `pred`.

    Returns:
        (..., P, T) scores in [-1, 1].

    Raises:
        ValueError: the batch axes differ or a last axis is not 4.
    """
    same = pred.ndim >= 2 and target.ndim >= 2 and pred.shape[:-2] == target.shape[:-2]
    if not same or pred.shape[-1] != 4 or target.shape[-1] != 4:
        raise ValueError(
            f"pairwise_giou: pred {tuple(pred.shape)} and target {tuple(target.shape)}, "
            "expected (..., P, 4) and (..., T, 4) with equal leading axes"
        )
    _check_device(pred=pred, target=target)
    refuse_transforms("pairwise_giou", pred, target)
    return _pairwise_giou(pred, target, None, None, target.shape[-2], True)


def pairwise_box_terms(
    pred: Tensor, target: Tensor, pred_offsets: Tensor, target_offsets: Tensor, *, max_target: int
) -> Tensor:
    """Return IoU, GIoU and corner distance of all pairs within each problem of a ragged batch.

    Shapes: B problems, P predicted and T target boxes over all problems; problem b has rows offsets[b] to
        offsets[b + 1].
    Units, Numerics: as `box_terms`.

    Args:
        pred: (P, 4) predicted boxes.
        target: (T, 4) target boxes, on the device of `pred`.
        pred_offsets: (B + 1,) int64. On CUDA offsets are not checked, because it would make the host wait: scores of
            wrong ones are wrong, but nothing outside the boxes is read.
        target_offsets: (B + 1,) int64.
        max_target: columns of the result. The most targets of a problem, which only the caller knows without waiting
            for the device; on CUDA further targets are left out, on the CPU they are an error.

    Returns:
        (P, max_target, 3); entry [p, j] belongs to the j-th target of the problem of box p, and is 0 past its last.

    Raises:
        ValueError: shapes do not fit; on the CPU also offsets that do not rise from 0 to the number of boxes, and
            problems with more than max_target targets.
    """
    shapes = f"pred {tuple(pred.shape)}, target {tuple(target.shape)}"
    if any(b.ndim != 2 or b.shape[1] != 4 for b in (pred, target)):
        raise ValueError(f"pairwise_box_terms: {shapes}: expected (P, 4) and (T, 4)")
    offsets = f"pred_offsets {tuple(pred_offsets.shape)} and target_offsets {tuple(target_offsets.shape)}"
    if pred_offsets.ndim != 1 or pred_offsets.shape != target_offsets.shape or pred_offsets.shape[0] < 1:
        raise ValueError(f"pairwise_box_terms: {offsets}, expected (B + 1,) twice")
    if pred_offsets.dtype != torch.int64 or target_offsets.dtype != torch.int64:
        raise ValueError(f"pairwise_box_terms: {pred_offsets.dtype} and {target_offsets.dtype}, expected int64 twice")
    if pred_offsets.shape[0] == 1 and len(pred) + len(target):
        raise ValueError(f"pairwise_box_terms: {shapes}, but {offsets}: boxes of no problem")
    tensors = {"pred": pred, "target": target, "pred_offsets": pred_offsets, "target_offsets": target_offsets}
    _check_device(**tensors)
    refuse_transforms("pairwise_box_terms", pred, target)
    return _pairwise_giou(pred, target, pred_offsets, target_offsets, max_target, False)


def choices(device: torch.device, op: str = ROOM) -> dict[str, Choice]:
    """Say which back end serves boxes of each precision on a device, for one of the room's ops."""
    by_table = back_ends.choices(op, device, torch.float32)
    return by_table | {"float64": Choice("reference", "kernels compute in fp32")}


def _check_aligned(name: str, pred: Tensor, target: Tensor) -> None:
    if pred.ndim != 2 or pred.shape[-1] != 4 or pred.shape != target.shape:
        raise ValueError(f"{name}: pred {tuple(pred.shape)} and target {tuple(target.shape)}, expected (N, 4) twice")
    _check_device(pred=pred, target=target)


def _check_device(**given: Tensor) -> None:
    if len({x.device for x in given.values()}) > 1:
        places = ", ".join(f"{name} on {x.device}" for name, x in given.items())
        raise ValueError(f"{ROOM}: {places}: expected all on one device")


def _check_spans(sets: Sets, width: int) -> None:
    """Check the offsets of a ragged batch on the CPU."""
    sides = (
        ("pred_offsets", sets.pred_offsets, len(sets.pred), len(sets.pred)),
        ("target_offsets", sets.target_offsets, len(sets.target), width),
    )
    for name, bounds, total, most in sides:
        if bounds is None or bounds.device.type != "cpu":
            continue
        counts = bounds.diff()
        if bounds[0] != 0 or bounds[-1] != total or bool(((counts < 0) | (counts > most)).any()):
            raise ValueError(
                f"pairwise_box_terms: {name} is {bounds.tolist()}, expected numbers that rise from 0 to {total}, "
                f"by at most {most}"
            )


def _runs_triton(op: str, pred: Tensor, target: Tensor) -> bool:
    dtype = back_ends.deciding_dtype(pred, target)
    return back_ends.choose(op, SHAPE, pred.device, dtype).backend == "triton"


@torch.library.custom_op("medmo_kernels::giou", mutates_args=())
def _giou(pred: Tensor, target: Tensor, giou_only: bool) -> Tensor:
    if _runs_triton("giou" if giou_only else "box_terms", pred, target):
        from .launch import aligned_forward

        return aligned_forward(pred, target, giou_only)
    return giou_reference(pred, target) if giou_only else box_terms_reference(pred, target)


@_giou.register_fake
def _(pred: Tensor, target: Tensor, giou_only: bool) -> Tensor:
    shape = pred.shape[:1] if giou_only else (pred.shape[0], 3)
    return pred.new_empty(shape, dtype=score_dtype(pred, target))


@torch.library.custom_op("medmo_kernels::giou_backward", mutates_args=())
def _giou_backward(pred: Tensor, target: Tensor, grad: Tensor, giou_only: bool) -> tuple[Tensor, Tensor]:
    if _runs_triton("giou" if giou_only else "box_terms", pred, target):
        from .launch import aligned_backward

        return aligned_backward(pred, target, grad, giou_only)
    return plain.aligned_backward(pred, target, grad, giou_only)


@_giou_backward.register_fake
def _(pred: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return pred.new_empty(pred.shape), target.new_empty(target.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.giou_only = inputs[-1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_giou_backward(*ctx.saved_tensors, grad, ctx.giou_only), None)


_giou.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("medmo_kernels::pairwise_giou", mutates_args=())
def _pairwise_giou(
    pred: Tensor,
    target: Tensor,
    pred_offsets: Tensor | None,
    target_offsets: Tensor | None,
    width: int,
    giou_only: bool,
) -> Tensor:
    sets = Sets(pred, target, pred_offsets, target_offsets)
    _check_spans(sets, width)
    if _runs_triton("pairwise_giou" if giou_only else "pairwise_box_terms", pred, target):
        from .launch import pairwise_forward

        return pairwise_forward(sets, width, giou_only)
    if pred_offsets is None or target_offsets is None:
        return pairwise_giou_reference(pred, target)
    return pairwise_box_terms_reference(pred, target, pred_offsets, target_offsets, max_target=width)


@_pairwise_giou.register_fake
def _(pred: Tensor, target: Tensor, _: Any, __: Any, width: int, giou_only: bool) -> Tensor:
    shape = (*pred.shape[:-1], width) if giou_only else (*pred.shape[:-1], width, 3)
    return pred.new_empty(shape, dtype=score_dtype(pred, target))


@torch.library.custom_op("medmo_kernels::pairwise_giou_backward", mutates_args=())
def _pairwise_giou_backward(
    pred: Tensor,
    target: Tensor,
    pred_offsets: Tensor | None,
    target_offsets: Tensor | None,
    grad: Tensor,
    giou_only: bool,
) -> tuple[Tensor, Tensor]:
    sets = Sets(pred, target, pred_offsets, target_offsets)
    if _runs_triton("pairwise_giou" if giou_only else "pairwise_box_terms", pred, target):
        from .launch import pairwise_backward

        return pairwise_backward(sets, grad, giou_only)
    return plain.pairwise_backward(sets, grad, giou_only)


@_pairwise_giou_backward.register_fake
def _(pred: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return pred.new_empty(pred.shape), target.new_empty(target.shape)


def _save_pairwise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.giou_only = inputs[-1]


def _pairwise_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_pairwise_giou_backward(*ctx.saved_tensors, grad, ctx.giou_only), None, None, None, None)


_pairwise_giou.register_autograd(_pairwise_backward, setup_context=_save_pairwise)

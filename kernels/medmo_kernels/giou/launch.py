"""Launchers of the giou kernels."""

# The options of a launch are no parameters of the kernel.
# pyright: reportCallIssue=false, reportArgumentType=false

import torch
from torch import Tensor

from ..fit import dense, dense_aligned, real
from ..grids import cdiv
from ..placement import on_device_of_tensors
from ..tables import tuned
from . import triton_kernel as kernels
from .reference import Sets

ROOM = "giou"


@on_device_of_tensors
def aligned_forward(pred: Tensor, target: Tensor, giou_only: bool) -> Tensor:
    """Score N pairs: (N,) GIoU, or (N, 3) IoU, GIoU and corner distance."""
    pred, target = real(pred), real(target)
    num_pairs = pred.shape[0]
    out = pred.new_empty((num_pairs,) if giou_only else (num_pairs, 3), dtype=torch.float32)
    if num_pairs:
        blocks, options, _ = tuned(ROOM, "aligned", pred)
        kernels.aligned_forward_kernel[(cdiv(num_pairs, blocks["BLOCK"]),)](
            dense_aligned(pred), dense_aligned(target), out, num_pairs, GIOU_ONLY=giou_only, **blocks, **options
        )
    return out


@on_device_of_tensors
def aligned_backward(pred: Tensor, target: Tensor, grad: Tensor, giou_only: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of both sides of N pairs, in their dtypes."""
    grads = pred.new_empty(pred.shape), target.new_empty(target.shape)
    pred, target = real(pred), real(target)
    num_pairs = pred.shape[0]
    if num_pairs:
        blocks, options, _ = tuned(ROOM, "aligned", pred)
        tensors = (dense_aligned(pred), dense_aligned(target), dense(grad), *grads)
        kernels.aligned_backward_kernel[(cdiv(num_pairs, blocks["BLOCK"]),)](
            *tensors, num_pairs, GIOU_ONLY=giou_only, **blocks, **options
        )
    return grads


def problem_of(offsets: Tensor, count: int) -> Tensor:
    """Return the problem of each of `count` boxes, on the device of the offsets; the last one has all that is left."""
    return torch.bucketize(torch.arange(count, device=offsets.device), offsets[1:-1], right=True)


@on_device_of_tensors
def pairwise_forward(sets: Sets, width: int, giou_only: bool) -> Tensor:
    """Score all pairs of every problem; ragged where offsets are given, else of leading batch axes."""
    pred, target = real(sets.pred), real(sets.target)
    out = pred.new_empty((*pred.shape[:-1], width) if giou_only else (*pred.shape[:-1], width, 3), dtype=torch.float32)
    num_rows = pred.shape[:-1].numel()
    if out.numel():
        blocks, options, _ = tuned(ROOM, "pairwise", pred)
        problem = None if sets.pred_offsets is None else problem_of(sets.pred_offsets, num_rows)
        tensors = (dense(pred), dense(target), out, problem, dense(sets.pred_offsets), dense(sets.target_offsets))
        kernels.pairwise_forward_kernel[(cdiv(num_rows, blocks["ROWS"]), cdiv(width, blocks["COLS"]))](
            *tensors, num_rows, pred.shape[-2], target.shape[-2], width,
            RAGGED=sets.pred_offsets is not None, GIOU_ONLY=giou_only, **blocks, **options,
        )  # fmt: skip
    return out


@on_device_of_tensors
def pairwise_backward(sets: Sets, grad: Tensor, giou_only: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of both sets, in their dtypes: one launch for each."""
    width = grad.shape[sets.pred.ndim - 1]
    dtypes = sets.pred.dtype, sets.target.dtype
    pred_side = dense(real(sets.pred)), dense(sets.pred_offsets)
    target_side = dense(real(sets.target)), dense(sets.target_offsets)
    grad, found = dense(grad), []
    blocks, options, _ = tuned(ROOM, "pairwise", pred_side[0])
    for (own, own_offsets), (other, other_offsets) in ((pred_side, target_side), (target_side, pred_side)):
        grad_own = own.new_empty(own.shape)
        num_rows = own.shape[:-1].numel()
        if num_rows:
            problem = None if own_offsets is None else problem_of(own_offsets, num_rows)
            kernels.pairwise_backward_kernel[(cdiv(num_rows, blocks["ROWS"]),)](
                own, other, grad, grad_own, problem, own_offsets, other_offsets,
                num_rows, own.shape[-2], other.shape[-2], width, OWN_IS_PRED=own is pred_side[0],
                RAGGED=own_offsets is not None, GIOU_ONLY=giou_only, **blocks, **options,
            )  # fmt: skip
        found.append(grad_own)
    return found[0].to(dtypes[0]), found[1].to(dtypes[1])

"""Triton kernel of box_reward: one launch from ragged boxes to scores and the pairs behind them.

One warp matches one problem with `match_problem` of the room box_match, then walks its predicted boxes, 64 at a time,
and pays their pairs. Matching is nearly all of the work (see there): what is added is a read of the pairs just written
and one IoU a pair.
"""

# Triton's language is Python to read, not to check: constants come as plain numbers, tensors as anything.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from ..box_match.triton_kernel import load_diagonal, load_span, match_problem
from ..box_match.triton_kernel_costs import GIOU_WEIGHT, IOU, L1_WEIGHT, MEDMO, OVERLAP, load_finite_boxes
from ..giou.triton_kernel import corner_distance, overlap_terms

BLOCK = tl.constexpr(64)
PAY_OVERLAP = tl.constexpr(0)  # order of FORMULAS
PAY_IOU = tl.constexpr(1)
PAY_MEDMO = tl.constexpr(2)
PAY_F1 = tl.constexpr(3)


@triton.jit
def _pay(a, b, diagonal, iou_threshold, FORMULA: tl.constexpr):
    """Return what pairs of boxes earn."""
    ax1, ay1, ax2, ay2, _ = a
    bx1, by1, bx2, by2, _ = b
    iou, giou = overlap_terms(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, False)
    if FORMULA == PAY_OVERLAP:
        pay = (iou + tl.maximum(giou, 0.0)) / 2.0
    elif FORMULA == PAY_IOU:
        pay = iou
    elif FORMULA == PAY_F1:
        # Rounding of the division must not decide a pair that lies exactly on the threshold.
        pay = tl.where((iou > 0.0) & (iou >= iou_threshold * (1.0 - 1e-6)), 1.0, 0.0)
    else:
        distance = corner_distance(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2) / (2.0 * diagonal)
        pay = L1_WEIGHT * (1.0 - tl.minimum(distance, 1.0)) + GIOU_WEIGHT * (giou + 1.0) / 2.0
        pay = pay / (L1_WEIGHT + GIOU_WEIGHT)
    return pay


@triton.jit(do_not_specialize=["count_pred", "count_truth"])
def box_reward_kernel(
    pred_ptr, truth_ptr, pred_offsets_ptr, truth_offsets_ptr, pred_labels_ptr, truth_labels_ptr, image_size_ptr,
    match_ptr, score_ptr, floats_ptr, ints_ptr, count_pred, count_truth, lambda_fn, lambda_fp, iou_threshold,
    squared, penalty_per_truth, FORMULA: tl.constexpr, LABELS: tl.constexpr, LARGE: tl.constexpr,
):  # fmt: skip
    """Match and score the problem of this program; `squared` and `penalty_per_truth` are 1.0 or 0.0."""
    COST: tl.constexpr = MEDMO if FORMULA == PAY_MEDMO else (OVERLAP if FORMULA == PAY_OVERLAP else IOU)
    problem = tl.program_id(0)
    pred_start, num_pred = load_span(pred_offsets_ptr, problem, count_pred)
    truth_start, num_truth = load_span(truth_offsets_ptr, problem, count_truth)
    diagonal = load_diagonal(image_size_ptr, problem, COST)
    match_problem(
        pred_ptr, truth_ptr, pred_labels_ptr, truth_labels_ptr, match_ptr, floats_ptr, ints_ptr,
        count_pred + count_truth, pred_start, truth_start, num_pred, num_truth, diagonal, COST, LABELS, LARGE,
    )  # fmt: skip
    tl.debug_barrier()  # lanes read pairs that others wrote
    earned = 0.0
    num_pairs = 0.0
    for first in range(0, num_pred, BLOCK):
        rows = pred_start + first + tl.arange(0, BLOCK)  # [BLOCK] int64
        inside = rows < pred_start + num_pred
        match = tl.load(match_ptr + rows, mask=inside, other=-1)
        matched = match >= 0
        pred = load_finite_boxes(pred_ptr, rows, matched)
        truth = load_finite_boxes(truth_ptr, tl.maximum(match, 0), matched)
        pay = _pay(pred, truth, diagonal, iou_threshold, FORMULA)
        if FORMULA != PAY_MEDMO:  # a pair that earns nothing is no pair
            matched = matched & (pay > 0.0)
            tl.store(match_ptr + rows, tl.where(matched, match, -1), mask=inside)
        earned += tl.sum(tl.where(matched, pay, 0.0))
        num_pairs += tl.sum(tl.where(matched, 1.0, 0.0))
    num_pred = num_pred.to(tl.float32)
    num_truth = num_truth.to(tl.float32)
    if FORMULA == PAY_MEDMO:
        shared_by = tl.maximum(num_truth, 1.0)
        penalty = lambda_fn * (num_truth - num_pairs) + lambda_fp * (num_pred - num_pairs)
        penalty = penalty / (1.0 + penalty_per_truth * (shared_by - 1.0))
        score = tl.minimum(tl.maximum(earned / shared_by - penalty, 0.0), 1.0)
        score = score * (1.0 + squared * (score - 1.0))
    else:
        shared_by = (num_pred + num_truth) / 2.0 if FORMULA == PAY_F1 else tl.maximum(num_pred, num_truth)
        nothing = 1.0 - tl.minimum(num_pred + num_truth, 1.0)  # 1 where nothing is predicted and nothing is true
        score = (earned + nothing) / (shared_by + nothing)
    tl.store(score_ptr + problem, score)

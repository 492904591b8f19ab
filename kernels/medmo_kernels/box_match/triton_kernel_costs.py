"""Costs of pairs of boxes, as the search of `triton_kernel_search.py` asks for them."""

# Triton's language is Python to read, not to check: constants come as plain numbers, tensors as anything.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from ..giou.triton_kernel import corner_distance, load_boxes, overlap_terms

OVERLAP = tl.constexpr(0)  # order of COSTS
IOU = tl.constexpr(1)
GIOU = tl.constexpr(2)
MEDMO = tl.constexpr(3)
L1_WEIGHT = tl.constexpr(5.0)
GIOU_WEIGHT = tl.constexpr(2.0)


@triton.jit
def load_finite_boxes(ptr, rows, mask):
    """Load boxes as four fp32 tensors shaped like `rows`, and whether all corners are finite; zeros where not."""
    x1, y1, x2, y2 = load_boxes(ptr, rows, mask)
    inf = float("inf")
    finite = mask & (tl.abs(x1) < inf) & (tl.abs(y1) < inf) & (tl.abs(x2) < inf) & (tl.abs(y2) < inf)
    return (
        tl.where(finite, x1, 0.0),
        tl.where(finite, y1, 0.0),
        tl.where(finite, x2, 0.0),
        tl.where(finite, y2, 0.0),
        finite,
    )


@triton.jit
def pair_costs(a, a_label, b, b_label, diagonal, COST: tl.constexpr, LABELS: tl.constexpr):
    """Return the fp32 costs of pairs of boxes, and which pairs are allowed."""
    ax1, ay1, ax2, ay2, a_finite = a
    bx1, by1, bx2, by2, b_finite = b
    iou, giou = overlap_terms(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, False)
    if COST == OVERLAP:
        cost = 1.0 - (iou + tl.maximum(giou, 0.0)) / 2.0
    elif COST == IOU:
        cost = 1.0 - iou
    elif COST == GIOU:
        cost = 1.0 - giou
    else:
        distance = corner_distance(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2) / (2.0 * diagonal)
        cost = L1_WEIGHT * distance + GIOU_WEIGHT * (1.0 - giou)
    allowed = a_finite & b_finite & (tl.abs(cost) < float("inf"))
    if LABELS:
        allowed = allowed & (a_label == b_label)
    return tl.maximum(cost, 0.0), allowed  # a rounded IoU may exceed 1


@triton.jit
def load_labels(ptr, rows, mask, LABELS: tl.constexpr):
    """Load the labels of boxes where the kernel compares labels, else anything of their shape."""
    return tl.load(ptr + rows, mask=mask, other=0) if LABELS else rows


@triton.jit
def row_costs(
    rows_ptr, row_labels_ptr, row, col, col_labels, diagonal, price, COST: tl.constexpr, LABELS: tl.constexpr
):
    """Return the float64 costs of one row against the columns at hand, the price where a pair is forbidden."""
    rows = tl.broadcast_to(row, col_labels.shape).to(tl.int64)
    every = rows >= 0
    row_box = load_finite_boxes(rows_ptr, rows, every)
    row_label = load_labels(row_labels_ptr, rows, every, LABELS)
    cost, allowed = pair_costs(row_box, row_label, col, col_labels, diagonal, COST, LABELS)
    return tl.where(allowed, cost.to(tl.float64), price)


@triton.jit
def _largest_coordinate(ptr, count, BLOCK: tl.constexpr):
    """Return the largest absolute coordinate of the finite boxes among `count`."""
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x1, y1, x2, y2, _ = load_finite_boxes(ptr, at, at < count)
        largest = tl.maximum(largest, tl.maximum(tl.abs(x1), tl.abs(y1)))
        largest = tl.maximum(largest, tl.maximum(tl.abs(x2), tl.abs(y2)))
    return tl.max(largest)


@triton.jit
def forbidden_price(rows_ptr, cols_ptr, num_rows, num_cols, diagonal, COST: tl.constexpr):
    """Return a float64 price above that of any set of allowed pairs."""
    if COST == MEDMO:  # |a - b| is at most twice the largest coordinate, at four corners
        largest = tl.maximum(_largest_coordinate(rows_ptr, num_rows, 64), _largest_coordinate(cols_ptr, num_cols, 64))
        # Where the bound itself overflows no pair is allowed, and any price will do.
        most = tl.minimum(2.0 * GIOU_WEIGHT + L1_WEIGHT * 8.0 * largest / (2.0 * diagonal), 1e30)
    else:
        most = 2.0
    return (most + 1e-6) * (num_rows + 1).to(tl.float64) + 1.0

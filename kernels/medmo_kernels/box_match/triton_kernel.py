"""Triton kernel of box_match: one warp solves one problem, exactly, with nothing of up to 64 x 64 pairs stored.

The larger set lies across the lanes as columns, two a lane at 64; the rows of the smaller set are assigned one by one
along shortest augmenting paths with prices. A row's costs are computed from its box and the lanes' boxes each time it
is scanned (about 40 FLOPs a pair); prices, distances and owners stay in registers. A larger problem takes the same
steps, 64 columns at a time, with its prices, distances and owners in a scratch buffer of 24 B per box that the launcher
hands out: any size, the same launch, no question to the host.

Costs are fp32; prices and distances are float64, so that the search is exact for those costs beside the price of
forbidden pairs. A scanned row costs one reduction of float64 over the warp (five shuffles deep) and three of int32 (one
instruction each), roughly 0.3 us, whatever the number of problems up to some thousands: 16 boxes need 18 to 64 scans,
64 boxes 134 where predictions are good and 473 where they are random. Bytes do not matter: 2.5 KB a problem.

The room box_reward runs the same search in its own kernel.
"""

# Triton's language is Python to read, not to check: constants come as plain numbers, tensors as anything.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..giou.triton_kernel import corner_distance, load_boxes, overlap_terms

OVERLAP = tl.constexpr(0)  # order of COSTS
IOU = tl.constexpr(1)
GIOU = tl.constexpr(2)
MEDMO = tl.constexpr(3)
L1_WEIGHT = tl.constexpr(5.0)
GIOU_WEIGHT = tl.constexpr(2.0)

REGISTER_COLUMNS = 64
"""Columns of the largest problem that is solved in registers."""
OWNED = tl.constexpr(1 << 30)
"""Added to the key of a column that has an owner, so that a free one at the same distance comes first."""
# Fused products would make two costs that are equal on paper differ. Without a limit of its own, ptxas spills so that
# more warps fit on a core.
OPTIONS = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": False, "maxnreg": 128}


# --- costs -----------------------------------------------------------------------------------------------------------


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
def _pair_costs(a, a_label, b, b_label, diagonal, COST: tl.constexpr, LABELS: tl.constexpr):
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
def _load_labels(ptr, rows, mask, LABELS: tl.constexpr):
    return tl.load(ptr + rows, mask=mask, other=0) if LABELS else rows


@triton.jit
def _row_costs(
    rows_ptr, row_labels_ptr, row, col, col_labels, diagonal, price, COST: tl.constexpr, LABELS: tl.constexpr
):
    """Return the float64 costs of one row against the columns at hand, the price where a pair is forbidden."""
    rows = tl.broadcast_to(row, col_labels.shape).to(tl.int64)
    every = rows >= 0
    row_box = load_finite_boxes(rows_ptr, rows, every)
    row_label = _load_labels(row_labels_ptr, rows, every, LABELS)
    cost, allowed = _pair_costs(row_box, row_label, col, col_labels, diagonal, COST, LABELS)
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
def _forbidden_price(rows_ptr, cols_ptr, num_rows, num_cols, diagonal, COST: tl.constexpr):
    """Return a float64 price above that of any set of allowed pairs."""
    if COST == MEDMO:  # |a - b| is at most twice the largest coordinate, at four corners
        largest = tl.maximum(_largest_coordinate(rows_ptr, num_rows, 64), _largest_coordinate(cols_ptr, num_cols, 64))
        # Where the bound itself overflows no pair is allowed, and any price will do.
        most = tl.minimum(2.0 * GIOU_WEIGHT + L1_WEIGHT * 8.0 * largest / (2.0 * diagonal), 1e30)
    else:
        most = 2.0
    return (most + 1e-6) * (num_rows + 1).to(tl.float64) + 1.0


# --- the search ------------------------------------------------------------------------------------------------------


@triton.jit
def _assign_in_registers(
    rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, num_rows, num_cols, diagonal, price,
    COST: tl.constexpr, LABELS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Return the row that owns each of N columns, -1 where none does; num_rows <= num_cols <= N."""
    lanes = tl.arange(0, N)
    exists = lanes < num_cols
    col = load_finite_boxes(cols_ptr, lanes, exists)  # four [N], and a mask
    col_labels = _load_labels(col_labels_ptr, lanes, exists, LABELS)
    owner = tl.full([N], -1, tl.int32)
    col_price = tl.zeros([N], tl.float64)
    row_price = tl.zeros([N], tl.float64)  # lane i: row i
    for start in range(num_rows):
        distance = tl.full([N], float("inf"), tl.float64)
        entered = tl.full([N], float("inf"), tl.float64)  # lane i: how far away row i joined the tree
        via = tl.zeros([N], tl.int32)
        waiting = exists
        row = start
        reach = tl.full([], 0.0, tl.float64)
        key = OWNED
        while key >= OWNED:  # until the nearest column is free
            base = reach - tl.sum(tl.where(lanes == row, row_price, 0.0))
            entered = tl.where(lanes == row, reach, entered)
            cost = _row_costs(rows_ptr, row_labels_ptr, row, col, col_labels, diagonal, price, COST, LABELS)
            longer = base + cost - col_price
            shorter = waiting & (longer < distance)
            distance = tl.where(shorter, longer, distance)
            via = tl.where(shorter, row, via)
            left = tl.where(waiting, distance, float("inf"))
            reach = tl.min(left)
            key = tl.min(tl.where(left == reach, tl.where(owner < 0, lanes, lanes + OWNED), 2 * OWNED - 1))
            here = lanes == (key & (OWNED - 1))
            waiting = waiting & (here == 0)
            row = tl.max(tl.where(here, owner, -1))
        # Whatever did not join the tree is farther than `reach` and keeps its price.
        row_price += tl.maximum(reach - entered, 0.0)
        col_price -= tl.maximum(reach - distance, 0.0)
        column = key
        taker = start - 1
        while taker != start:  # hand the columns on along the path, from its free end back to the start
            here = lanes == column
            taker = tl.max(tl.where(here, via, 0))
            column = tl.max(tl.where(owner == taker, lanes, 0))
            owner = tl.where(here, taker, owner)
    return owner


@triton.jit
def _assign_in_memory(
    rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, num_rows, num_cols, diagonal, price, floats_ptr, ints_ptr,
    num_boxes, COST: tl.constexpr, LABELS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Leave the row that owns each column, -1 where none does, in ints_ptr[0 : num_cols]; num_rows <= num_cols.

    The same steps as in registers, N columns at a time. Each array holds its columns first and its rows behind them:
    prices, distances, owners (of a row: the column that it owns) and the row by which a column was reached, as
    -1 - row once the column is closed. Barriers stand where one lane reads what another wrote.
    """
    prices = floats_ptr
    distances = floats_ptr + num_boxes
    owners = ints_ptr
    vias = ints_ptr + num_boxes
    lanes = tl.arange(0, N)
    total = num_cols + num_rows
    for first in range(0, total, N):
        at = first + lanes
        tl.store(prices + at, tl.zeros([N], tl.float64), mask=at < total)
        tl.store(owners + at, tl.full([N], -1, tl.int32), mask=at < total)
    for start in range(num_rows):
        for first in range(0, total, N):
            at = first + lanes
            tl.store(distances + at, tl.full([N], float("inf"), tl.float64), mask=at < total)
            tl.store(vias + at, tl.zeros([N], tl.int32), mask=at < total)
        tl.debug_barrier()
        row = start
        reach = tl.full([], 0.0, tl.float64)
        key = OWNED
        while key >= OWNED:
            base = reach - tl.load(prices + num_cols + row)
            tl.store(distances + num_cols + row, reach)
            nearest = tl.full([N], float("inf"), tl.float64)
            keys = tl.full([N], 2 * OWNED - 1, tl.int32)
            for first in range(0, num_cols, N):
                at = first + lanes
                exists = at < num_cols
                col = load_finite_boxes(cols_ptr, at, exists)
                col_labels = _load_labels(col_labels_ptr, at, exists, LABELS)
                cost = _row_costs(rows_ptr, row_labels_ptr, row, col, col_labels, diagonal, price, COST, LABELS)
                via = tl.load(vias + at, mask=exists, other=-1)
                distance = tl.load(distances + at, mask=exists, other=float("inf"))
                longer = base + cost - tl.load(prices + at, mask=exists, other=0.0)
                shorter = (via >= 0) & (longer < distance)
                distance = tl.where(shorter, longer, distance)
                tl.store(distances + at, distance, mask=exists)
                tl.store(vias + at, tl.where(shorter, row, via), mask=exists)
                left = tl.where(via >= 0, distance, float("inf"))
                here = tl.where(tl.load(owners + at, mask=exists, other=-1) < 0, at, at + OWNED)
                better = (left < nearest) | ((left == nearest) & (here < keys))
                nearest = tl.where(better, left, nearest)
                keys = tl.where(better, here, keys)
            reach = tl.min(nearest)
            key = tl.min(tl.where(nearest == reach, keys, 2 * OWNED - 1))
            tl.debug_barrier()
            column = key & (OWNED - 1)
            row = tl.load(owners + column)
            reached_by = tl.load(vias + column)
            tl.debug_barrier()
            tl.store(vias + column, -1 - reached_by)
            tl.debug_barrier()
        for first in range(0, total, N):
            at = first + lanes
            gain = tl.maximum(reach - tl.load(distances + at, mask=at < total, other=float("inf")), 0.0)
            gain = tl.where(at < num_cols, -gain, gain)
            tl.store(prices + at, tl.load(prices + at, mask=at < total, other=0.0) + gain, mask=at < total)
        tl.debug_barrier()
        column = key
        taker = start - 1
        while taker != start:
            reached_by = tl.load(vias + column)
            taker = tl.maximum(reached_by, -1 - reached_by)
            following = tl.load(owners + num_cols + taker)
            tl.debug_barrier()
            tl.store(owners + column, taker)
            tl.store(owners + num_cols + taker, column)
            tl.debug_barrier()
            column = following


# --- problems --------------------------------------------------------------------------------------------------------


@triton.jit
def _write_match(
    match_ptr, owner, columns, exists, pred_is_rows, truth_start, rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr,
    diagonal, COST: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    """Write the row of `truth` of each predicted box among these columns or their owners, -1 for a forbidden pair."""
    rows = tl.maximum(owner, 0)
    owned = exists & (owner >= 0)
    row, col = load_finite_boxes(rows_ptr, rows, owned), load_finite_boxes(cols_ptr, columns, exists)
    row_labels = _load_labels(row_labels_ptr, rows, owned, LABELS)
    col_labels = _load_labels(col_labels_ptr, columns, exists, LABELS)
    _, allowed = _pair_costs(row, row_labels, col, col_labels, diagonal, COST, LABELS)
    if pred_is_rows:  # every row owns a column
        tl.store(match_ptr + rows, tl.where(allowed, truth_start + columns, -1), mask=owned)
    else:
        tl.store(match_ptr + columns, tl.where(allowed, truth_start + rows, -1), mask=exists)


@triton.jit
def match_problem(
    pred_ptr, truth_ptr, pred_labels_ptr, truth_labels_ptr, match_ptr, floats_ptr, ints_ptr, num_boxes,
    pred_start, truth_start, num_pred, num_truth, diagonal,
    COST: tl.constexpr, LABELS: tl.constexpr, LARGE: tl.constexpr,
):  # fmt: skip
    """Match one problem: write int64 rows of `truth`, or -1, at match_ptr[pred_start : pred_start + num_pred].

    Args:
        floats_ptr: float64 scratch for prices and distances, one of each per box of the batch.
        ints_ptr: int32 scratch for owners and ways, one of each per box.
        num_boxes: predicted and true boxes of the batch.
        pred_start, truth_start: int64; the counts are int32.
        diagonal: of the image; read by MEDMO.
        LARGE: whether a problem may have more than 64 boxes on a side.
    """
    pred_is_rows = num_pred <= num_truth
    if pred_is_rows:
        rows_ptr = pred_ptr + pred_start * 4
        cols_ptr = truth_ptr + truth_start * 4
        row_labels_ptr = pred_labels_ptr + pred_start
        col_labels_ptr = truth_labels_ptr + truth_start
    else:
        rows_ptr = truth_ptr + truth_start * 4
        cols_ptr = pred_ptr + pred_start * 4
        row_labels_ptr = truth_labels_ptr + truth_start
        col_labels_ptr = pred_labels_ptr + pred_start
    num_rows, num_cols = tl.minimum(num_pred, num_truth), tl.maximum(num_pred, num_truth)
    match_ptr += pred_start
    price = _forbidden_price(rows_ptr, cols_ptr, num_rows, num_cols, diagonal, COST)
    if num_cols <= 32:
        columns = tl.arange(0, 32)
        owner = _assign_in_registers(
            rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, num_rows, num_cols, diagonal, price, COST, LABELS, 32
        )
        _write_match(
            match_ptr, owner, columns, columns < num_cols, pred_is_rows, truth_start,
            rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, diagonal, COST, LABELS,
        )  # fmt: skip
    elif num_cols <= 64:
        columns = tl.arange(0, 64)
        owner = _assign_in_registers(
            rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, num_rows, num_cols, diagonal, price, COST, LABELS, 64
        )
        _write_match(
            match_ptr, owner, columns, columns < num_cols, pred_is_rows, truth_start,
            rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, diagonal, COST, LABELS,
        )  # fmt: skip
    elif LARGE:
        floats_ptr += pred_start + truth_start
        ints_ptr += pred_start + truth_start
        _assign_in_memory(
            rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, num_rows, num_cols, diagonal, price,
            floats_ptr, ints_ptr, num_boxes, COST, LABELS, 64,
        )  # fmt: skip
        for first in range(0, num_cols, 64):
            columns = first + tl.arange(0, 64)
            exists = columns < num_cols
            owner = tl.load(ints_ptr + columns, mask=exists, other=-1)
            _write_match(
                match_ptr, owner, columns, exists, pred_is_rows, truth_start,
                rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, diagonal, COST, LABELS,
            )  # fmt: skip


@triton.jit
def load_span(offsets_ptr, problem):
    """Return where a problem's boxes start (int64), and how many it has (int32)."""
    start = tl.load(offsets_ptr + problem)
    return start, (tl.load(offsets_ptr + problem + 1) - start).to(tl.int32)


@triton.jit
def load_diagonal(image_size_ptr, problem, COST: tl.constexpr):
    """Return the diagonal of a problem's image where the cost reads it, else 1."""
    if COST == MEDMO:
        width = tl.load(image_size_ptr + 2 * problem).to(tl.float32)
        height = tl.load(image_size_ptr + 2 * problem + 1).to(tl.float32)
        diagonal = tl.sqrt(width * width + height * height)
    else:
        diagonal = 1.0
    return diagonal


@triton.jit
def box_match_kernel(
    pred_ptr, truth_ptr, pred_offsets_ptr, truth_offsets_ptr, pred_labels_ptr, truth_labels_ptr, image_size_ptr,
    match_ptr, floats_ptr, ints_ptr, num_boxes,
    COST: tl.constexpr, LABELS: tl.constexpr, LARGE: tl.constexpr,
):  # fmt: skip
    """Match the problem of this program."""
    problem = tl.program_id(0)
    pred_start, num_pred = load_span(pred_offsets_ptr, problem)
    truth_start, num_truth = load_span(truth_offsets_ptr, problem)
    match_problem(
        pred_ptr, truth_ptr, pred_labels_ptr, truth_labels_ptr, match_ptr, floats_ptr, ints_ptr, num_boxes,
        pred_start, truth_start, num_pred, num_truth, load_diagonal(image_size_ptr, problem, COST),
        COST, LABELS, LARGE,
    )  # fmt: skip


# --- launcher --------------------------------------------------------------------------------------------------------


def problem_arguments(
    pred: Tensor,
    truth: Tensor,
    pred_offsets: Tensor,
    truth_offsets: Tensor,
    pred_labels: Tensor | None,
    truth_labels: Tensor | None,
    image_size: Tensor | None,
) -> tuple[list[Tensor | None], list[Tensor | int], dict[str, bool]]:
    """Prepare what kernels that call `match_problem` read: problems, scratch, and constants."""
    if pred.dtype != truth.dtype:
        pred, truth = pred.float(), truth.float()
    large = max(len(pred), len(truth)) > REGISTER_COLUMNS
    num_boxes = len(pred) + len(truth)
    scratch = 2 * num_boxes if large else 0
    labels = (pred_labels, truth_labels) if pred_labels is not None else (pred_offsets, truth_offsets)  # never read
    problems = (pred, truth, pred_offsets, truth_offsets, *labels, image_size)
    return (
        [None if tensor is None else tensor.contiguous() for tensor in problems],
        [pred.new_empty(scratch, dtype=torch.float64), pred.new_empty(scratch, dtype=torch.int32), num_boxes],
        {"LABELS": pred_labels is not None, "LARGE": large},
    )


def box_match_triton(
    pred: Tensor,
    truth: Tensor,
    pred_offsets: Tensor,
    truth_offsets: Tensor,
    pred_labels: Tensor | None,
    truth_labels: Tensor | None,
    image_size: Tensor | None,
    cost: int,
) -> Tensor:
    """Match all problems in one launch; `cost` is an index into COSTS."""
    match = pred.new_empty(len(pred), dtype=torch.int64)
    if len(pred):
        problems, scratch, constants = problem_arguments(
            pred, truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size
        )
        grid = (len(pred_offsets) - 1,)
        box_match_kernel[grid](*problems, match, *scratch, COST=cost, **constants, **OPTIONS)
    return match

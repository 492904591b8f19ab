"""Triton kernel of box_match: one warp solves one problem, exactly, with nothing of up to 64 x 64 pairs stored.

The larger set lies across the lanes as columns, two a lane at 64; the rows of the smaller set are assigned one by one
along shortest augmenting paths with prices. A row's costs are computed from its box and the lanes' boxes each time it
is scanned (about 40 FLOPs a pair); prices, distances and owners stay in registers. A larger problem takes the same
steps, 64 columns at a time, with its prices, distances and owners in a scratch buffer of 24 B per box that the launcher
hands out: any size, the same launch, no question to the host.

Costs are fp32; prices and distances are float64, so that the search is exact for those costs beside the price of
forbidden pairs. As compiled for sm_90 a scanned row costs one reduction of float64 over the warp (five shuffles deep),
one gather (two shuffles side by side) and two reductions of int32 (one instruction each). Estimated from these
latencies, not measured: about 0.3 us a scan, whatever the number of problems up to some thousands. 16 boxes need 18 to
64 scans, 64 boxes 134 where predictions are good and 473 where they are random. Bytes do not matter: 2.5 KB a problem.

The room box_reward runs the same search in its own kernel.
"""

# Triton's language is Python to read, not to check: constants come as plain numbers, tensors as anything.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from .triton_kernel_costs import MEDMO, forbidden_price, load_finite_boxes, load_labels, pair_costs
from .triton_kernel_search import assign_in_memory, assign_in_registers


@triton.jit
def _write_match(
    match_ptr, owner, columns, exists, pred_is_rows, truth_start, rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr,
    diagonal, COST: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    """Write the row of `truth` of each predicted box among these columns or their owners, -1 for a forbidden pair."""
    rows = tl.maximum(owner, 0)
    owned = exists & (owner >= 0)
    row, col = load_finite_boxes(rows_ptr, rows, owned), load_finite_boxes(cols_ptr, columns, exists)
    row_labels = load_labels(row_labels_ptr, rows, owned, LABELS)
    col_labels = load_labels(col_labels_ptr, columns, exists, LABELS)
    _, allowed = pair_costs(row, row_labels, col, col_labels, diagonal, COST, LABELS)
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
        pred_start, truth_start: int64 rows at which the problem begins.
        num_pred, num_truth: int32 boxes of the problem.
        diagonal: diagonal of the image; read by MEDMO.
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
    price = forbidden_price(rows_ptr, cols_ptr, num_rows, num_cols, diagonal, COST)
    if num_cols <= 32:
        columns = tl.arange(0, 32)
        owner = assign_in_registers(
            rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, num_rows, num_cols, diagonal, price, COST, LABELS, 32
        )
        _write_match(
            match_ptr, owner, columns, columns < num_cols, pred_is_rows, truth_start,
            rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, diagonal, COST, LABELS,
        )  # fmt: skip
    elif num_cols <= 64:
        columns = tl.arange(0, 64)
        owner = assign_in_registers(
            rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, num_rows, num_cols, diagonal, price, COST, LABELS, 64
        )
        _write_match(
            match_ptr, owner, columns, columns < num_cols, pred_is_rows, truth_start,
            rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, diagonal, COST, LABELS,
        )  # fmt: skip
    elif LARGE:
        floats_ptr += pred_start + truth_start
        ints_ptr += pred_start + truth_start
        assign_in_memory(
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
def load_span(offsets_ptr, problem, count):
    """Return where a problem's boxes start (int64), and how many it has (int32): never one outside the `count`."""
    start = tl.minimum(tl.maximum(tl.load(offsets_ptr + problem), 0), count)
    return start, (tl.minimum(tl.maximum(tl.load(offsets_ptr + problem + 1), start), count) - start).to(tl.int32)


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


@triton.jit(do_not_specialize=["count_pred", "count_truth"])
def box_match_kernel(
    pred_ptr, truth_ptr, pred_offsets_ptr, truth_offsets_ptr, pred_labels_ptr, truth_labels_ptr, image_size_ptr,
    match_ptr, floats_ptr, ints_ptr, count_pred, count_truth,
    COST: tl.constexpr, LABELS: tl.constexpr, LARGE: tl.constexpr,
):  # fmt: skip
    """Match the problem of this program."""
    problem = tl.program_id(0)
    pred_start, num_pred = load_span(pred_offsets_ptr, problem, count_pred)
    truth_start, num_truth = load_span(truth_offsets_ptr, problem, count_truth)
    match_problem(
        pred_ptr, truth_ptr, pred_labels_ptr, truth_labels_ptr, match_ptr, floats_ptr, ints_ptr,
        count_pred + count_truth,
        pred_start, truth_start, num_pred, num_truth, load_diagonal(image_size_ptr, problem, COST),
        COST, LABELS, LARGE,
    )  # fmt: skip

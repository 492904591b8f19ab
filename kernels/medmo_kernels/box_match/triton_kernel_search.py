"""The search of box_match: shortest augmenting paths with prices, in registers and in memory."""

# Triton's language is Python to read, not to check: constants come as plain numbers, tensors as anything.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from .triton_kernel_costs import load_finite_boxes, load_labels, row_costs

OWNED = tl.constexpr(1 << 30)
"""Added to the key of a column that has an owner, so that a free one at the same distance comes first."""


@triton.jit
def assign_in_registers(
    rows_ptr, cols_ptr, row_labels_ptr, col_labels_ptr, num_rows, num_cols, diagonal, price,
    COST: tl.constexpr, LABELS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Return the row that owns each of N columns, -1 where none does; num_rows <= num_cols <= N."""
    lanes = tl.arange(0, N)
    exists = lanes < num_cols
    col = load_finite_boxes(cols_ptr, lanes, exists)  # four [N], and a mask
    col_labels = load_labels(col_labels_ptr, lanes, exists, LABELS)
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
            base = reach - tl.gather(row_price, tl.full([N], 0, tl.int32) + row, 0)  # [N], all the same
            entered = tl.where(lanes == row, reach, entered)
            cost = row_costs(rows_ptr, row_labels_ptr, row, col, col_labels, diagonal, price, COST, LABELS)
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
def assign_in_memory(
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
                col_labels = load_labels(col_labels_ptr, at, exists, LABELS)
                cost = row_costs(rows_ptr, row_labels_ptr, row, col, col_labels, diagonal, price, COST, LABELS)
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

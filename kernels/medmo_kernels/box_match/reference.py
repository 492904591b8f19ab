"""The definition of optimal one-to-one assignment, and of the costs of matching boxes.

Shapes: B problems, P predicted and T true boxes over all problems; problem b owns rows offsets[b] to offsets[b + 1].
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..giou import overlap_terms

COSTS = ("overlap", "iou", "giou", "medmo")
L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0  # MedMO's, as in DETR


class Problems(NamedTuple):
    """A ragged batch of problems.

    Attributes:
        pred: (P, 4) predicted boxes.
        truth: (T, 4) true boxes.
        pred_offsets: (B + 1,) int64 starts of the problems in `pred`.
        truth_offsets: (B + 1,) int64 starts of the problems in `truth`.
        pred_labels: (P,) int64 classes; None: boxes have none.
        truth_labels: (T,) int64 classes; None like `pred_labels`.
        image_size: (B, 2) width and height; None where no cost reads them.
    """

    pred: Tensor
    truth: Tensor
    pred_offsets: Tensor
    truth_offsets: Tensor
    pred_labels: Tensor | None
    truth_labels: Tensor | None
    image_size: Tensor | None

    @property
    def num_problems(self) -> int:
        """Return B."""
        return self.pred_offsets.shape[0] - 1


def spans(offsets: Tensor, total: int, name: str) -> list[tuple[int, int]]:
    """Return (start, stop) of every problem; `name` names the tensor in errors, which `check_spans` raises."""
    check_spans(offsets, total, name)
    bounds = offsets.tolist()
    return list(zip(bounds, bounds[1:], strict=False))


def check_spans(offsets: Tensor, total: int, name: str) -> None:
    """Check the offsets of a ragged batch.

    Raises:
        ValueError: they do not rise from 0 to `total`.
    """
    if offsets[0] != 0 or offsets[-1] != total or bool((offsets.diff() < 0).any()):
        raise ValueError(
            f"{name} is {offsets.tolist()}, expected numbers that rise from 0 to {total}, the number of boxes"
        )


def solve(cost: Sequence[Sequence[float]]) -> list[int]:
    """Assign rows to columns, one to one: as many allowed pairs as possible, and of those the cheapest.

    Numerics: Python floats (float64). Exact up to their rounding.

    Args:
        cost: one sequence per row, all of one length. A cost that is not finite forbids its pair.

    Returns:
        The column of each row, -1 where it has none.

    Reference: shortest augmenting paths with potentials, Jonker and Volgenant 1987; Crouse 2016.
    """
    num_rows, num_cols = len(cost), len(cost[0]) if cost else 0
    if num_rows > num_cols:
        flipped = solve([[row[j] for row in cost] for j in range(num_cols)])
        match = [-1] * num_rows
        for column, row in enumerate(flipped):
            if row >= 0:
                match[row] = column
        return match
    finite = [c for row in cost for c in row if math.isfinite(c)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    forbidden = (high - low) * (num_rows + 1) + 1.0  # above the cost of any set of allowed pairs
    filled = [[c - low if math.isfinite(c) else forbidden for c in row] for row in cost]
    match = _augment(filled, num_cols)
    return [j if math.isfinite(row[j]) else -1 for row, j in zip(cost, match, strict=True)]


def _augment(cost: list[list[float]], num_cols: int) -> list[int]:
    """Assign every row of a finite matrix that is not taller than wide."""
    row_price, col_price = [0.0] * len(cost), [0.0] * num_cols
    match, owner = [-1] * len(cost), [-1] * num_cols
    for start in range(len(cost)):
        distance, via = [math.inf] * num_cols, [-1] * num_cols
        waiting, done = list(range(num_cols)), []
        row, reach = start, 0.0
        while True:
            base = reach - row_price[row]
            costs = cost[row]
            for j in waiting:
                longer = base + costs[j] - col_price[j]
                if longer < distance[j]:
                    distance[j], via[j] = longer, row
            nearest = min(waiting, key=distance.__getitem__)
            reach = distance[nearest]
            if owner[nearest] < 0:
                break
            waiting.remove(nearest)
            done.append(nearest)
            row = owner[nearest]
        row_price[start] += reach
        for j in done:
            row_price[owner[j]] += reach - distance[j]
            col_price[j] -= reach - distance[j]
        column = nearest
        while True:  # hand the columns on along the path, from its free end back to the start
            row = via[column]
            owner[column] = row
            column, match[row] = match[row], column
            if row == start:
                break
    return match


def pair_costs(pred: Tensor, truth: Tensor, cost: str, diagonal: float | None = None) -> Tensor:
    """Return what matching each predicted with each true box of one problem costs.

    `overlap`: 1 - (IoU + max(0, GIoU)) / 2. `iou`: 1 - IoU. `giou`: 1 - GIoU. `medmo`: 5 L1 + 2 (1 - GIoU), with L1 the
    sum of the four corner differences over twice the image diagonal.

    Args:
        pred: (P, 4) float64 boxes.
        truth: (T, 4) float64 boxes.
        cost: one of `COSTS`.
        diagonal: diagonal of the image, in the unit of the boxes; for `medmo`.

    Returns:
        (P, T) float64; inf where a box has a coordinate that is not finite.
    """
    iou, giou = overlap_terms(pred[:, None], truth[None, :])
    if cost == "overlap":
        costs = 1 - (iou + giou.clamp(min=0)) / 2
    elif cost == "iou":
        costs = 1 - iou
    elif cost == "giou":
        costs = 1 - giou
    else:
        assert cost == "medmo" and diagonal is not None
        l1 = (pred[:, None] - truth[None, :]).abs().sum(-1) / (2 * diagonal)
        costs = L1_WEIGHT * l1 + GIOU_WEIGHT * (1 - giou)
    usable = pred.isfinite().all(1)[:, None] & truth.isfinite().all(1)[None, :]
    return costs.masked_fill(~usable, math.inf)


def check_counts(num_rows: Tensor, num_cols: Tensor, rows: int, cols: int) -> None:
    """Check that every problem fits its padded matrix.

    Raises:
        ValueError: one does not.
    """
    wrong = (num_rows < 0) | (num_rows > rows) | (num_cols < 0) | (num_cols > cols)
    if bool(wrong.any()):
        b = int(wrong.nonzero()[0])
        pairs = f"{int(num_rows[b])} x {int(num_cols[b])}"
        raise ValueError(f"assign: problem {b} has {pairs} pairs, the matrices hold {rows} x {cols}")


def assign_reference(cost: Tensor, num_rows: Tensor, num_cols: Tensor) -> Tensor:
    """Assign rows to columns in a batch of padded cost matrices; see `assign`."""
    check_counts(num_rows, num_cols, cost.shape[1], cost.shape[2])
    match = torch.full(cost.shape[:2], -1, dtype=torch.int64)
    for b, (rows, cols) in enumerate(zip(num_rows.tolist(), num_cols.tolist(), strict=True)):
        if rows and cols:
            match[b, :rows] = torch.tensor(solve(cost[b, :rows, :cols].double().tolist()))
    return match.to(cost.device)


def box_match_reference(
    pred: Tensor,
    truth: Tensor,
    pred_offsets: Tensor,
    truth_offsets: Tensor,
    *,
    pred_labels: Tensor | None = None,
    truth_labels: Tensor | None = None,
    image_size: Tensor | None = None,
    cost: str = "overlap",
) -> Tensor:
    """Match predicted with true boxes in every problem; see `box_match`."""
    match = torch.full((len(pred),), -1, dtype=torch.int64)
    problems = zip(
        spans(pred_offsets, len(pred), "pred_offsets"), spans(truth_offsets, len(truth), "truth_offsets"), strict=True
    )
    for b, ((p0, p1), (t0, t1)) in enumerate(problems):
        if p0 == p1 or t0 == t1:
            continue
        diagonal = math.hypot(*image_size[b].tolist()) if image_size is not None else None
        costs = pair_costs(pred[p0:p1].double(), truth[t0:t1].double(), cost, diagonal)
        if pred_labels is not None and truth_labels is not None:
            costs = costs.masked_fill(pred_labels[p0:p1, None] != truth_labels[None, t0:t1], math.inf)
        columns = torch.tensor(solve(costs.tolist()))
        match[p0:p1] = torch.where(columns >= 0, columns + t0, -1)
    return match.to(pred.device)

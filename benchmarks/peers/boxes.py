"""Matching and rewarding boxes by others: costs of a whole batch on the device, then an assignment of each problem.

Shapes: B problems, P and T boxes of the widest problem. What a problem lacks, and what may not be paired, costs
`forbidden`: dearer than any set of allowed pairs, so that as many of those are taken as there can be. The costs are
written apart from the room's own, which go problem by problem: these are timed as a batch, and judge ours.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medmo_kernels.box_match.reference import GIOU_WEIGHT, L1_WEIGHT
from medmo_kernels.box_match.reference import Problems as Given
from medmo_kernels.box_reward.reference import COST_OF, Pay, score_matches
from medmo_kernels.giou import overlap_terms
from medmo_kernels.giou.reference import score_dtype

from .peer import Peer


class Problems(NamedTuple):
    """A ragged batch as matrices.

    Attributes:
        cost: (B, P, T) costs, `forbidden` where not allowed.
        allowed: (B, P, T) whether a pair may be taken.
        rows: (B, P) rows of the predicted boxes, past the end where there is none.
        starts: (B,) row of each problem's first true box.
    """

    cost: Tensor
    allowed: Tensor
    rows: Tensor
    starts: Tensor


def problems_of(
    pred: Tensor, truth: Tensor, pred_offsets: Tensor, truth_offsets: Tensor, pred_labels: Tensor | None,
    truth_labels: Tensor | None, image_size: Tensor | None, cost: str,
) -> Problems:  # fmt: skip
    """Compute the costs of all pairs of all problems in one batch."""
    sides = []
    for boxes, offsets, labels in ((pred, pred_offsets, pred_labels), (truth, truth_offsets, truth_labels)):
        counts = offsets.diff()
        place = torch.arange(int(counts.max()) if len(counts) else 0, device=boxes.device)
        rows = offsets[:-1, None] + place
        held = torch.cat([boxes, boxes.new_full((1, 4), torch.nan)])[rows.clamp(max=len(boxes))]
        usable = (place < counts[:, None]) & held.isfinite().all(-1)
        kinds = None if labels is None else torch.cat([labels, labels[:1]])[rows.clamp(max=len(labels))]
        sides.append((held, usable, kinds, rows))
    (p, p_usable, p_kinds, rows), (t, t_usable, t_kinds, _) = sides
    wide = score_dtype(pred, truth)
    p, t = p[:, :, None].to(wide), t[:, None].to(wide)
    allowed = p_usable[:, :, None] & t_usable[:, None]
    if p_kinds is not None and t_kinds is not None:
        allowed = allowed & (p_kinds[:, :, None] == t_kinds[:, None])
    iou, giou = overlap_terms(p, t)
    if cost == "overlap":
        costs = 1 - (iou + giou.clamp(min=0)) / 2
    elif cost == "medmo":
        assert image_size is not None
        diagonal = image_size.to(iou.dtype).square().sum(1).sqrt()[:, None, None]
        costs = L1_WEIGHT * (p - t).abs().sum(-1) / (2 * diagonal) + GIOU_WEIGHT * (1 - giou)
    else:
        costs = 1 - (iou if cost == "iou" else giou)
    return _forbidding(costs, allowed, rows, truth_offsets[:-1])


def _forbidding(costs: Tensor, allowed: Tensor, rows: Tensor, starts: Tensor) -> Problems:
    known = torch.where(allowed, costs, 0).abs().flatten(1)
    most = known.amax(1) if known.shape[1] else known.new_zeros(len(known))
    forbidden = (2 * most + 1) * (min(costs.shape[1:]) + 1)
    return Problems(torch.where(allowed, costs, forbidden[:, None, None]), allowed, rows, starts)


def _rows_to_match(problems: Problems, columns: Tensor, num_pred: int) -> Tensor:
    """Turn (B, P) columns, -1 for none, into rows of the true boxes, of each predicted box."""
    chosen = problems.allowed.gather(2, columns.clamp(min=0)[..., None])[..., 0] & (columns >= 0)
    match = torch.full((num_pred,), -1, dtype=torch.int64, device=columns.device)
    match[problems.rows[chosen]] = (problems.starts[:, None] + columns)[chosen]
    return match


def _by_scipy(cost: Tensor) -> Tensor:
    """Assign problem by problem on the host; (B, P) columns, -1 for none."""
    from scipy.optimize import linear_sum_assignment

    columns = np.full(cost.shape[:2], -1)
    for b, matrix in enumerate(cost.cpu().numpy()):
        rows, best = linear_sum_assignment(matrix)
        columns[b, rows] = best
    return torch.from_numpy(columns).to(cost.device)


def _by_torch_linear_assignment(cost: Tensor) -> Tensor:
    from torch_linear_assignment import batch_linear_assignment

    return batch_linear_assignment(cost)


def _match_by(solve: Any) -> Any:
    def match(
        *, pred: Tensor, truth: Tensor, pred_offsets: Tensor, truth_offsets: Tensor, pred_labels: Tensor | None = None,
        truth_labels: Tensor | None = None, image_size: Tensor | None = None, cost: str = "overlap",
    ) -> Tensor:  # fmt: skip
        problems = problems_of(
            pred, truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size, cost
        )  # fmt: skip
        if not problems.cost.numel():
            return torch.full((len(pred),), -1, dtype=torch.int64, device=pred.device)
        return _rows_to_match(problems, solve(problems.cost), len(pred))

    return match


def _reward_by(solve: Any) -> Any:
    match_by = _match_by(solve)

    def reward(
        *, pred: Tensor, truth: Tensor, pred_offsets: Tensor, truth_offsets: Tensor, image_size: Tensor, formula: str,
        pred_labels: Tensor | None, truth_labels: Tensor | None, **options: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        match = match_by(
            pred=pred, truth=truth, pred_offsets=pred_offsets, truth_offsets=truth_offsets, pred_labels=pred_labels,
            truth_labels=truth_labels, image_size=image_size, cost=COST_OF[formula],
        )  # fmt: skip
        given = Given(pred, truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size)
        return score_matches(given, match, Pay(formula, **options))

    return reward


def _assign_by(solve: Any) -> Any:
    def assign(*, cost: Tensor, num_rows: Tensor, num_cols: Tensor) -> Tensor:
        there = [torch.arange(size, device=cost.device) < count[:, None]
                 for size, count in zip(cost.shape[1:], (num_rows, num_cols), strict=True)]  # fmt: skip
        allowed = there[0][:, :, None] & there[1][:, None] & cost.isfinite()
        rows = torch.arange(cost[..., 0].numel(), device=cost.device).view(cost.shape[:2])
        problems = _forbidding(cost, allowed, rows, num_rows.new_zeros(len(cost)))
        return _rows_to_match(problems, solve(problems.cost), rows.numel()).view(cost.shape[:2])

    return assign


def _by_coco(
    *, pred: Tensor, truth: Tensor, pred_offsets: Tensor, truth_offsets: Tensor, pred_labels: Tensor | None,
    truth_labels: Tensor | None, formula: str, **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Score completion by completion: pycocotools' IoU of all pairs, SciPy's assignment, the mean over the boxes."""
    from pycocotools import mask
    from scipy.optimize import linear_sum_assignment

    if formula != "iou":
        raise NotImplementedError("pycocotools computes IoU only")
    sides = []
    for boxes, labels in ((pred, pred_labels), (truth, truth_labels)):
        corners = boxes.double().cpu().numpy()
        sides.append((np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
                      None if labels is None else labels.cpu().numpy()))  # fmt: skip
    (p, p_kinds), (t, t_kinds) = sides
    p_bounds, t_bounds = pred_offsets.tolist(), truth_offsets.tolist()
    scores, match = np.ones(len(p_bounds) - 1), np.full(len(p), -1)
    for b in range(len(scores)):
        own, other = slice(p_bounds[b], p_bounds[b + 1]), slice(t_bounds[b], t_bounds[b + 1])
        num_pred, num_truth = own.stop - own.start, other.stop - other.start
        if not (num_pred and num_truth):
            scores[b] = num_pred == num_truth
            continue
        iou = np.asarray(mask.iou(p[own], t[other], np.zeros(num_truth)))
        if p_kinds is not None and t_kinds is not None:
            iou = np.where(p_kinds[own, None] == t_kinds[None, other], iou, 0)
        rows, columns = linear_sum_assignment(iou, maximize=True)
        paid = iou[rows, columns] > 0
        scores[b] = iou[rows, columns].sum() / max(num_pred, num_truth)
        match[own.start + rows[paid]] = other.start + columns[paid]
    wide = torch.float64 if pred.dtype == torch.float64 else torch.float32
    return torch.from_numpy(scores).to(pred.device, wide), torch.from_numpy(match).to(pred.device)


SCIPY, LINEAR = "SciPy through the host", "torch-linear-assignment"
_WAYS = ((SCIPY, "scipy", _by_scipy), (LINEAR, "torch_linear_assignment", _by_torch_linear_assignment))
MATCH = {name: Peer(_match_by(solve), needs=(package,)) for name, package, solve in _WAYS}
ASSIGN = {name: Peer(_assign_by(solve), needs=(package,)) for name, package, solve in _WAYS}
REWARD = {name: Peer(_reward_by(solve), needs=(package,)) for name, package, solve in _WAYS} | {
    "pycocotools' IoU and SciPy": Peer(_by_coco, needs=("pycocotools", "scipy"))
}

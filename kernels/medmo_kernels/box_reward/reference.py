"""The definition of the box rewards: ragged predicted and true boxes to one score per problem.

Shapes: B problems, P predicted and T true boxes over all problems; problem b owns rows offsets[b] to offsets[b + 1].
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..box_match import box_match_reference
from ..box_match.reference import Problems
from ..giou import overlap_terms

FORMULAS = ("overlap", "iou", "medmo", "f1")
COST_OF = {"overlap": "overlap", "iou": "iou", "medmo": "medmo", "f1": "iou"}  # what a formula's matching minimises
L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0  # MedMO's weights of a pair's score


class Pay(NamedTuple):
    """The formula of a reward and its parameters; see `box_reward`."""

    formula: str
    lambda_fn: float
    lambda_fp: float
    squared: bool
    penalty_per_truth: bool
    iou_threshold: float


def box_reward_reference(
    pred: Tensor,
    truth: Tensor,
    pred_offsets: Tensor,
    truth_offsets: Tensor,
    *,
    pred_labels: Tensor | None = None,
    truth_labels: Tensor | None = None,
    image_size: Tensor | None = None,
    formula: str = "overlap",
    lambda_fn: float = 0.0,
    lambda_fp: float = 0.0,
    squared: bool = False,
    penalty_per_truth: bool = True,
    iou_threshold: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Score predicted against true boxes, problem by problem; see `box_reward`."""
    match = box_match_reference(
        pred, truth, pred_offsets, truth_offsets,
        pred_labels=pred_labels, truth_labels=truth_labels, image_size=image_size, cost=COST_OF[formula],
    )  # fmt: skip
    problems = Problems(pred, truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size)
    pay = Pay(formula, lambda_fn, lambda_fp, squared, penalty_per_truth, iou_threshold)
    return score_matches(problems, match, pay)


def score_matches(problems: Problems, match: Tensor, pay: Pay) -> tuple[Tensor, Tensor]:
    """Turn matched pairs into scores, on the device of the boxes and without a copy to the host.

    Args:
        problems: arguments of the op.
        match: (P,) int64 row of `truth` that each predicted box is matched with, or -1.
        pay: formula and its parameters.

    Returns:
        (B,) scores and (P,) the pairs that count: except for `medmo`, one that earns nothing is dropped.
    """
    pred, truth, pred_offsets, truth_offsets, _, _, image_size = problems
    formula = pay.formula
    wide = torch.float64 if torch.float64 in (pred.dtype, truth.dtype) else torch.float32
    num_pred, num_truth = pred_offsets.diff().to(wide), truth_offsets.diff().to(wide)
    problem = torch.bucketize(torch.arange(pred.shape[0], device=pred.device), pred_offsets[1:], right=True)
    # One row of zeros below the true boxes serves the unmatched (-1): shapes stay static, and it is masked out.
    padded = torch.cat([truth.to(wide), truth.new_zeros((1, 4), dtype=wide)])
    paired = padded[match]
    iou, giou = overlap_terms(pred.to(wide), paired)
    if formula == "medmo":
        assert image_size is not None
        diagonal = image_size.to(wide).square().sum(1).sqrt()
        l1 = (pred.to(wide) - paired).abs().sum(1) / (2 * diagonal[problem])
        earned = (L1_WEIGHT * (1 - l1.clamp(0, 1)) + GIOU_WEIGHT * (giou + 1) / 2) / (L1_WEIGHT + GIOU_WEIGHT)
    else:
        if formula == "overlap":
            earned = (iou + giou.clamp(min=0)) / 2
        elif formula == "iou":
            earned = iou
        else:
            # Rounding of the division must not decide a pair that lies exactly on the threshold.
            slack = 1e-12 if wide == torch.float64 else 1e-6
            earned = ((iou > 0) & (iou >= pay.iou_threshold * (1 - slack))).to(wide)
        match = torch.where(earned > 0, match, -1)
    matched = match >= 0
    zeros = torch.zeros(problems.num_problems, dtype=wide, device=pred.device)
    total = zeros.index_add(0, problem, torch.where(matched, earned, 0))
    if formula != "medmo":
        shared_by = (num_pred + num_truth) / 2 if formula == "f1" else torch.maximum(num_pred, num_truth)
        return torch.where(shared_by > 0, total / shared_by.clamp(min=0.5), 1), match
    pairs = zeros.index_add(0, problem, matched.to(wide))
    penalty = pay.lambda_fn * (num_truth - pairs) + pay.lambda_fp * (num_pred - pairs)
    if pay.penalty_per_truth:
        penalty = penalty / num_truth.clamp(min=1)
    reward = (total / num_truth.clamp(min=1) - penalty).clamp(0, 1)
    return reward.square() if pay.squared else reward, match


def check_options(lambda_fn: float, lambda_fp: float, iou_threshold: float) -> None:
    """Check the penalties and the threshold.

    Raises:
        ValueError: a penalty is negative or not a number, or the threshold is not in [0, 1].
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"box_reward: iou_threshold is {iou_threshold}, expected a number from 0 to 1")
    for name, value in (("lambda_fn", lambda_fn), ("lambda_fp", lambda_fp)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"box_reward: {name} is {value}, expected a number of at least 0")

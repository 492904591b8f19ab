"""Registration of box_reward. CPU: native matching where it is built, else the reference. CUDA: the reference."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..box_match import box_match
from ..box_match.op import check_problems
from .reference import FORMULAS, box_reward_reference, check_options, score_matches


class BoxReward(NamedTuple):
    """Scores, and the pairs behind them.

    Attributes:
        score: (B,) in [0, 1].
        match: (P,) int64 row of `truth` that each predicted box was paid for, or -1.
    """

    score: Tensor
    match: Tensor


def box_reward(
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
) -> BoxReward:
    """Score predicted against true boxes, one score per problem of a ragged batch.

    `overlap` (default) and `iou`: the sum of the pay of the best one-to-one matching over max(P, T) of the problem, the
    pay of a pair being (IoU + max(0, GIoU)) / 2 or IoU. Both are free of scale; a box that overlaps no true box of its
    class, or is a second one on the same target, never pays; nothing predicted where nothing is true scores 1.

    `medmo`: MedMO's published formula. A pair pays [5 (1 - clip(L1)) + 2 (GIoU + 1) / 2] / 7, matched at least cost
    5 L1 + 2 (1 - GIoU); R = clip(sum of pay / T - penalty), penalty = [lambda_fn (T - matched) + lambda_fp
    (P - matched)] / max(1, T). Where nothing is true it is 0 whatever is predicted. Known weaknesses: a small box five
    widths off its target still earns 0.74, and without lambda_fp spurious boxes are free.

    Shapes: B problems, P predicted and T true boxes over all problems; problem b has rows offsets[b] to offsets[b + 1].
    Units: pixels, or any unit that boxes and image_size share.
    Numerics: matching in float64, scores in fp32 (float64 for float64); bitwise repeatable on the CPU. No gradients.

    Args:
        pred: (P, 4) predicted boxes x1, y1, x2, y2; NaN or reversed corners make a box that never pays.
        truth: (T, 4) true boxes.
        pred_offsets: (B + 1,) int64.
        truth_offsets: (B + 1,) int64.
        pred_labels: (P,) int64 classes; with `truth_labels`, boxes of different classes never match.
        truth_labels: (T,) int64 classes.
        image_size: (B, 2) width and height; needed by `medmo`.
        formula: `overlap`, `iou` or `medmo`.
        lambda_fn: `medmo`'s price of a missed true box; unpublished, 0 is the weaker guess.
        lambda_fp: `medmo`'s price of a spurious box; unpublished.
        squared: `medmo`: square the result, as one transcription of the paper has it.
        penalty_per_truth: `medmo`: divide the penalty by max(1, T); the transcriptions disagree.

    Returns:
        Scores and the pairs behind them.

    Raises:
        ValueError: shapes, offsets, names or penalties do not fit.
    """
    check_problems("box_reward", pred, truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size)
    check_options(lambda_fn, lambda_fp)
    if formula not in FORMULAS:
        raise ValueError(f"box_reward: unknown formula {formula!r}, expected one of {', '.join(FORMULAS)}")
    if formula == "medmo" and image_size is None:
        raise ValueError("box_reward: formula 'medmo' divides by the image diagonal: give image_size (B, 2)")
    return BoxReward(
        *_box_reward(
            pred, truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size, formula,
            lambda_fn, lambda_fp, squared, penalty_per_truth,
        )
    )  # fmt: skip


@torch.library.custom_op("medmo_kernels::box_reward", mutates_args=())
def _box_reward(
    pred: Tensor,
    truth: Tensor,
    pred_offsets: Tensor,
    truth_offsets: Tensor,
    pred_labels: Tensor | None,
    truth_labels: Tensor | None,
    image_size: Tensor | None,
    formula: str,
    lambda_fn: float,
    lambda_fp: float,
    squared: bool,
    penalty_per_truth: bool,
) -> tuple[Tensor, Tensor]:
    return box_reward_reference(
        pred, truth, pred_offsets, truth_offsets,
        pred_labels=pred_labels, truth_labels=truth_labels, image_size=image_size, formula=formula,
        lambda_fn=lambda_fn, lambda_fp=lambda_fp, squared=squared, penalty_per_truth=penalty_per_truth,
    )  # fmt: skip


@_box_reward.register_fake
def _(
    pred: Tensor,
    truth: Tensor,
    pred_offsets: Tensor,
    truth_offsets: Tensor,
    pred_labels: Tensor | None,
    truth_labels: Tensor | None,
    image_size: Tensor | None,
    formula: str,
    lambda_fn: float,
    lambda_fp: float,
    squared: bool,
    penalty_per_truth: bool,
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if torch.float64 in (pred.dtype, truth.dtype) else torch.float32
    score = pred.new_empty(pred_offsets.shape[0] - 1, dtype=wide)
    return score, pred.new_empty(pred.shape[:1], dtype=torch.int64)


@_box_reward.register_kernel("cpu")
def _(
    pred: Tensor,
    truth: Tensor,
    pred_offsets: Tensor,
    truth_offsets: Tensor,
    pred_labels: Tensor | None,
    truth_labels: Tensor | None,
    image_size: Tensor | None,
    formula: str,
    lambda_fn: float,
    lambda_fp: float,
    squared: bool,
    penalty_per_truth: bool,
) -> tuple[Tensor, Tensor]:
    match = box_match(
        pred, truth, pred_offsets, truth_offsets,
        pred_labels=pred_labels, truth_labels=truth_labels, image_size=image_size, cost=formula,
    )  # fmt: skip
    return score_matches(
        pred, truth, pred_offsets, truth_offsets, match, image_size, formula,
        lambda_fn, lambda_fp, squared, penalty_per_truth,
    )  # fmt: skip

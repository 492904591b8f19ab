"""Registration of box_reward. CUDA: one Triton launch for boxes of up to 32 bits. On the CPU, and for float64 boxes:
box_match, which is native where that is built, and the scores in torch ops.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import back_ends, runtime
from ..back_ends import Choice
from ..box_match import box_match
from ..box_match.op import SHAPE, check_problems, host_form
from ..box_match.reference import Problems
from .reference import COST_OF, FORMULAS, Pay, check_options, score_matches

OP = "box_reward"
BACK_ENDS = back_ends.declare("box_reward", OP, ("triton", "torch"), plain=host_form)
"""Names that the table may use; `torch`: matched by box_match, scored by torch ops."""


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
    iou_threshold: float = 0.5,
) -> BoxReward:
    """Score predicted against true boxes, one score per problem of a ragged batch.

    `overlap` (default) and `iou`: the sum of the pay of the best one-to-one matching over max(P, T) of the problem, the
    pay of a pair being (IoU + max(0, GIoU)) / 2 or IoU. Both are the scale-aware variants: a box of 10 px and one of
    500 px that miss by the same share of their size earn the same. A box that overlaps no true box of its class, or is
    a second one on the same target, never pays.

    `f1`: 2 TP / (P + T), a true positive being a pair of the matching at the largest total IoU whose IoU is at least
    iou_threshold.

    `medmo`: MedMO's published formula. A pair pays [5 (1 - clip(L1)) + 2 (GIoU + 1) / 2] / 7, matched at least cost
    5 L1 + 2 (1 - GIoU), with L1 the corner distance over twice the image diagonal; R = clip(sum of pay / T - penalty),
    penalty = [lambda_fn (T - matched) + lambda_fp (P - matched)] / max(1, T). Known weaknesses: a small box five widths
    off its target still earns 0.74, and without lambda_fp spurious boxes are free.

    Where nothing is true: `overlap`, `iou` and `f1` score 1 if nothing is predicted and 0 otherwise; `medmo` scores 0
    whatever is predicted, as published.

    Shapes: B problems, P predicted and T true boxes over all problems; problem b has rows offsets[b] to offsets[b + 1].
    Units: pixels, or any unit that boxes and image_size share.
    Numerics: matching as `box_match`, scores in fp32 (float64 for float64); bitwise repeatable. No gradients.
    Devices: one launch on CUDA, without waiting for the host, for any number of boxes; float64 boxes are matched on the
        host.

    Args:
        pred: (P, 4) predicted boxes x1, y1, x2, y2; NaN or reversed corners make a box that never pays.
        truth: (T, 4) true boxes.
        pred_offsets: (B + 1,) int64.
        truth_offsets: (B + 1,) int64.
        pred_labels: (P,) int64 classes; with `truth_labels`, boxes of different classes never match.
        truth_labels: (T,) int64 classes.
        image_size: (B, 2) width and height; needed by `medmo`.
        formula: `overlap`, `iou`, `f1` or `medmo`.
        lambda_fn: `medmo`'s price of a missed true box; unpublished, 0 is the weaker guess.
        lambda_fp: `medmo`'s price of a spurious box; unpublished.
        squared: `medmo`: square the result, as one transcription of the paper has it.
        penalty_per_truth: `medmo`: divide the penalty by max(1, T); the transcriptions disagree.

        iou_threshold: `f1`: least IoU of a true positive, from 0 to 1; a pair without overlap is none.

    Returns:
        Scores and the pairs behind them: a pair that earns nothing is left out, except for `medmo`.

    Raises:
        ValueError: shapes, names, penalties or the threshold do not fit; on the CPU also the offsets.
    """
    problems = Problems(pred, truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size)
    check_problems("box_reward", problems)
    check_options(lambda_fn, lambda_fp, iou_threshold)
    if formula not in FORMULAS:
        raise ValueError(f"box_reward: unknown formula {formula!r}, expected one of {', '.join(FORMULAS)}")
    if formula == "medmo" and image_size is None:
        raise ValueError("box_reward: formula 'medmo' divides by the image diagonal: give image_size (B, 2)")
    pay = Pay(formula, lambda_fn, lambda_fp, squared, penalty_per_truth, iou_threshold)
    return BoxReward(*_box_reward(*problems, *pay))


def choices(device: torch.device) -> dict[str, Choice]:
    """Say which back end serves which boxes on a device."""
    boxes = back_ends.explain(OP, SHAPE, device, torch.float32)
    if boxes.backend == "reference":
        refused = () if host_form() == "native" else (("native", runtime.native_status()),)
        boxes = Choice(host_form(), boxes.reason, (*boxes.refused, *refused))
    return {
        f"boxes in {SHAPE}": boxes,
        "boxes in float64": Choice("reference", "scored by torch ops", (("triton", "computes in fp32"),)),
    }


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
    iou_threshold: float,
) -> tuple[Tensor, Tensor]:
    problems = Problems(pred, truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size)
    pay = Pay(formula, lambda_fn, lambda_fp, squared, penalty_per_truth, iou_threshold)
    dtype = back_ends.deciding_dtype(pred, truth)
    if back_ends.choose(OP, SHAPE, pred.device, dtype).backend == "triton":
        from .launch import box_reward_triton

        return box_reward_triton(problems, pay)
    options = dict(zip(problems._fields[4:], problems[4:], strict=True))
    match = box_match(*problems[:4], **options, cost=COST_OF[formula])
    return score_matches(problems, match, pay)


@_box_reward.register_fake
def _(pred: Tensor, truth: Tensor, pred_offsets: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if torch.float64 in (pred.dtype, truth.dtype) else torch.float32
    score = pred.new_empty(pred_offsets.shape[0] - 1, dtype=wide)
    return score, pred.new_empty(pred.shape[:1], dtype=torch.int64)

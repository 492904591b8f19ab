"""Grounding: how well predicted boxes cover the true ones.

Protocol, per sample: predicted and true boxes of the same image and label are matched one to one at the largest total
IoU. IoU = sum of matched IoU / max(P, T). F1@0.5 = 2 TP / (P + T), a true positive being a matched pair of IoU >= 0.5.
Nothing predicted where nothing is true scores 1 in both; an answer that cannot be read scores 0, also where nothing is
true. A set's figure is the mean over its samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from medmo_kernels.box_reward import box_reward
from medmo_kernels.giou import overlap_terms

from ..boxes import AnyBoxes, no_boxes
from .matching import box_problems

IOU_THRESHOLD = 0.5


class GroundingScores(NamedTuple):
    """Scores of each sample, in order.

    Attributes:
        iou: sum of matched IoU / max(P, T).
        f1: 2 TP / (P + T) at the IoU threshold.
    """

    iou: list[float]
    f1: list[float]


def grounding_scores(
    pred: Sequence[AnyBoxes | None], truth: Sequence[AnyBoxes], *, threshold: float = IOU_THRESHOLD
) -> GroundingScores:
    """Score predicted boxes sample by sample; the module's docstring states the protocol.

    Args:
        pred: boxes read from each answer, in any frame; None where the answer could not be read.
        truth: the true boxes of each sample.
        threshold: IoU from which a matched pair is a true positive.

    Raises:
        ValueError: the lists differ in length.
    """
    readable = [no_boxes(t) if p is None else p for p, t in zip(pred, truth, strict=True)]
    problems = box_problems(readable, truth)
    found = box_reward(
        problems.pred, problems.truth, problems.pred_offsets, problems.truth_offsets,
        pred_labels=problems.pred_labels, truth_labels=problems.truth_labels, formula="iou",
    )  # fmt: skip
    matched = (found.match >= 0).nonzero().flatten()
    iou = torch.zeros(len(problems.pred), dtype=torch.float64)
    iou[matched] = overlap_terms(problems.pred[matched], problems.truth[found.match[matched]])[0]
    # Rounding of the division must not decide a pair that lies exactly on the threshold.
    hits = (iou >= threshold * (1 - 1e-12)).double()
    bounds = problems.pred_offsets.tolist()
    f1: list[float] = []
    for index, (p, t) in enumerate(zip(readable, truth, strict=True)):
        true_positives = hits[bounds[index] : bounds[index + 1]].sum().item()
        f1.append(2 * true_positives / (len(p) + len(t)) if len(p) + len(t) else 1.0)
    lost = [p is None for p in pred]
    return GroundingScores(
        iou=[0.0 if gone else value for gone, value in zip(lost, found.score.tolist(), strict=True)],
        f1=[0.0 if gone else value for gone, value in zip(lost, f1, strict=True)],
    )

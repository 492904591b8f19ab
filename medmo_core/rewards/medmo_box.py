"""Reward `medmo_box`: the box reward that MedMO published, for comparison and for repeating its run."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from medmo_kernels import box_reward as score_boxes

from ..boxes import AnyBoxes, Boxes
from ..profile import QWEN3_VL, CheckpointProfile
from .box_answers import ParsedAnswers, box_answers
from .example import Example
from .plain import reads_plain


@reads_plain
def medmo_box_reward(
    completions: Sequence[Any],
    *,
    task: Sequence[str],
    boxes: Sequence[AnyBoxes | None],
    image_size: Sequence[tuple[int, int] | None],
    profile: Sequence[CheckpointProfile] | CheckpointProfile,
    parsed_boxes: ParsedAnswers | None = None,
    lambda_fn: float = 0.0,
    lambda_fp: float = 0.0,
    penalty_per_truth: bool = True,
    squared: bool = False,
    compare_labels: bool = False,
    empty_score: float = 0.0,
    **columns: Any,
) -> list[float | None]:
    """Score boxes by MedMO's formula: corner distance and GIoU of the pairs of a Hungarian matching.

    For G true and P predicted boxes of an image H x W, M the assignment of least cost 5 L1 + 2 (1 - GIoU), L1 the sum
    of the four corner differences over 2 sqrt(H^2 + W^2):

        pay     = [5 (1 - clip(L1)) + 2 (GIoU + 1) / 2] / 7
        penalty = [lambda_fn (G - |M|) + lambda_fp (P - |M|)] / max(1, G)
        reward  = clip(sum of pay over M / G - penalty)

    It is a weak reward (docs/box_reward.md): five sevenths of the pay hardly see a small box miss, spurious boxes are
    free at the defaults, and a correct "nothing there" earns nothing. `box` is the project's own.

    What the paper leaves open is an option, and each default is the reading that adds nothing to the text:

    Args:
        completions, task, boxes, image_size, profile, parsed_boxes, columns: arguments of `box`. Coordinates are
            pixels of the image as it stands in the sample.
        lambda_fn: price of a missed box; unpublished, and "optional" in the text: 0.
        lambda_fp: price of a spurious box; unpublished: 0.
        penalty_per_truth: divide the penalty by max(1, G), as one transcription has it; off, as the other: only the sum
            of the pay.
        squared: square the reward, as one transcription shows it (probably a footnote mark).
        compare_labels: let only boxes of equal label match; the formula names no labels: off.
        empty_score: score of a completion that rightly says that there is nothing; the formula is 0 / 0 there: 0.

    Returns:
        Scores in [0, 1], or None where the task is not grounding or there is no image. A completion without readable
        boxes scores 0.

    Raises:
        ValueError: a price is negative or not a number.

    Reference: MedMO, arXiv 2602.06965, section on reinforcement learning; read through transcriptions.
    """
    answers = box_answers(completions, task, boxes, image_size, profile, parsed_boxes, compare_labels=compare_labels)
    p = answers.problems
    score = score_boxes(
        p.pred, p.truth, p.pred_offsets, p.truth_offsets,
        pred_labels=p.pred_labels, truth_labels=p.truth_labels, image_size=p.image_size, formula="medmo",
        lambda_fn=lambda_fn, lambda_fp=lambda_fp, penalty_per_truth=penalty_per_truth, squared=squared,
    ).score  # fmt: skip
    nothing = (p.pred_offsets.diff() == 0) & (p.truth_offsets.diff() == 0)
    return answers.filled(torch.where(nothing, empty_score, score).tolist())


_SIZE = (1024, 1024)
_PIXELS = CheckpointProfile(frame="pixel", grammar=QWEN3_VL.grammar)
_CELL = (500.0, 500.0, 510.0, 510.0)


def _example(about: str, completion: Any, score: float | None, *truth: float, task: str = "grounding") -> Example:
    boxes = Boxes(torch.tensor(truth).reshape(-1, 4), "pixel", _SIZE, ("cell",) * (len(truth) // 4))
    return Example(about, completion, score, {"task": task, "boxes": boxes, "image_size": _SIZE, "profile": _PIXELS})


_FAR = (5 * (1 - 100 / (2 * math.hypot(*_SIZE))) + 2 * (1 - 2 / 3) / 2) / 7


def _said(*corners: list[int], label: str = "cell") -> str:
    return "[" + ", ".join(f'{{"bbox_2d": {box}, "label": "{label}"}}' for box in corners) + "]"


EXAMPLES = (
    _example("the true box", _said([500, 500, 510, 510]), 1.0, *_CELL),
    _example("a cell that misses by five widths", _said([550, 500, 560, 510]), _FAR, *_CELL),
    _example("spurious boxes are free", _said([500, 500, 510, 510], [0, 0, 50, 50]), 1.0, *_CELL),
    _example("labels are not compared", _said([500, 500, 510, 510], label="vessel"), 1.0, *_CELL),
    _example("one of two", _said([500, 500, 510, 510]), 0.5, *_CELL, 0.0, 0.0, 20.0, 20.0),
    _example("nothing said of nothing", "[]", 0.0),
    _example("nothing said of something", "[]", 0.0, *_CELL),
    _example("babble", "cell cell", 0.0, *_CELL),
    _example("no text at all", None, 0.0, *_CELL),
    _example("another task", "yes", None, *_CELL, task="vqa"),
)

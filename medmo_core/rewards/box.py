"""Reward `box`: boxes that lie where the true ones do."""

from collections.abc import Sequence
from typing import Any

import torch

from medmo_kernels import box_reward as score_boxes

from ..boxes import AnyBoxes, Boxes
from ..profile import MEDMO, QWEN3_VL, CheckpointProfile
from .box_answers import ParsedAnswers, box_answers
from .example import Example
from .plain import reads_plain

FORMULAS = ("graded", "overlap", "iou", "f1")
FIRST_THRESHOLD, LAST_THRESHOLD = 0.3, 0.5
RISE = 0.5
"""Share of the run over which the IoU that a hit needs rises from the first threshold to the last."""


@reads_plain
def box_reward(
    completions: Sequence[Any],
    *,
    task: Sequence[str],
    boxes: Sequence[AnyBoxes | None],
    image_size: Sequence[tuple[int, int] | None],
    profile: Sequence[CheckpointProfile] | CheckpointProfile,
    parsed_boxes: ParsedAnswers | None = None,
    trainer_state: Any = None,
    formula: str = "graded",
    **columns: Any,
) -> list[float | None]:
    """Score the boxes of each completion against the true ones, matched one to one within each label.

    graded (the default) = (overlap + F1 at a threshold) / 2, for P predicted and T true boxes:

    - overlap: the sum over matched pairs of (IoU + max(0, GIoU)) / 2, over max(P, T): every bit of overlap counts, and
      size does not (a cell of 10 px and a liver that miss by the same share of their size earn the same);
    - F1 = 2 hits / (P + T), a hit being a matched pair whose IoU reaches the threshold, which rises with the run
      (`threshold_at`): what grounding is judged by, once the model can reach it.

    A box that overlaps no true box of its label, and a second box on one target, earn nothing and cost. Saying that
    there is nothing, where nothing is, scores 1.

    Args:
        completions: texts, or chats that end with one.
        task: task of each sample.
        boxes: the true boxes.
        image_size: (width, height) px.
        profile: frame and grammar of the completion.
        parsed_boxes: boxes of the completions, where they have been read already (`parse_answers`); None: read here.
        trainer_state: object with `global_step` and `max_steps`, as TRL passes; None: the threshold is the last one.
        formula: `graded`, or `overlap`, `iou` or `f1` (at the threshold) alone; see `medmo_kernels.box_reward`.
        columns: not used.

    Returns:
        Scores in [0, 1], or None where the task is not grounding or there is no image. A completion without readable
        boxes and without a statement that there are none scores 0; boxes that cannot be used are left out, partly
        outside ones are clipped. Where nothing is true, a completion with any fault scores 0. Labels are not compared
        where the grammar or the true boxes have none; a box without label is the questioned one where all true boxes
        bear one label.

    Raises:
        ValueError: an unknown formula.
    """
    if formula not in FORMULAS:
        raise ValueError(f"box_reward: unknown formula {formula!r}, expected one of {', '.join(FORMULAS)}")
    answers = box_answers(completions, task, boxes, image_size, profile, parsed_boxes)
    parts = ("overlap", "f1") if formula == "graded" else (formula,)
    threshold = threshold_at(trainer_state)
    p = answers.problems
    scores = [
        score_boxes(
            p.pred, p.truth, p.pred_offsets, p.truth_offsets,
            pred_labels=p.pred_labels, truth_labels=p.truth_labels, formula=part, iou_threshold=threshold,
        ).score
        for part in parts
    ]  # fmt: skip
    return answers.filled(torch.stack(scores).mean(0).tolist())


def threshold_at(trainer_state: Any = None) -> float:
    """Return the IoU that a hit needs at a point of the run: from 0.3 at its start to 0.5 from its middle on."""
    if trainer_state is None or not trainer_state.max_steps:
        return LAST_THRESHOLD
    risen = min(1.0, trainer_state.global_step / (RISE * trainer_state.max_steps))
    return FIRST_THRESHOLD + (LAST_THRESHOLD - FIRST_THRESHOLD) * risen


_SIZE = (200, 100)
_LIVER = Boxes(torch.tensor([[20.0, 10.0, 60.0, 50.0]]), "pixel", _SIZE, ("liver",))
_TWO = torch.tensor([[20.0, 10.0, 60.0, 50.0], [120.0, 10.0, 160.0, 50.0]])
_PAIR = Boxes(_TWO, "pixel", _SIZE, ("left kidney", "right kidney"))
_NONE = Boxes.empty(_SIZE)
_BARE = CheckpointProfile(grammar="medmo_bare_list")


def _example(
    about: str, completion: Any, score: float | None, truth: Boxes = _LIVER, *, task: str = "grounding",
    profile: CheckpointProfile = QWEN3_VL,
) -> Example:  # fmt: skip
    return Example(about, completion, score, {"task": task, "boxes": truth, "image_size": _SIZE, "profile": profile})


def _said(*items: tuple[str, list[int]]) -> str:
    return "[" + ", ".join(f'{{"bbox_2d": {corners}, "label": "{label}"}}' for label, corners in items) + "]"


_RIGHT, _LEFT_HALF, _AWAY = [100, 100, 300, 500], [100, 100, 200, 500], [700, 700, 900, 900]
_SECOND = [600, 100, 800, 500]

EXAMPLES = (
    _example("the true box", _said(("Liver", _RIGHT)), 1.0),
    _example("half of it, which is just a hit", _said(("liver", _LEFT_HALF)), 0.75),
    _example("another label", _said(("spleen", _RIGHT)), 0.0),
    _example("a box that overlaps nothing", _said(("liver", _AWAY)), 0.0),
    _example("a spurious box costs", _said(("liver", _RIGHT), ("liver", _AWAY)), (1 / 2 + 2 / 3) / 2),
    _example("a duplicate costs", _said(("liver", _RIGHT), ("liver", _RIGHT)), (1 / 2 + 2 / 3) / 2),
    _example("one of two", _said(("left kidney", _RIGHT)), (1 / 2 + 2 / 3) / 2, _PAIR),
    _example("sides exchanged", _said(("right kidney", _RIGHT), ("left kidney", _SECOND)), 0.0, _PAIR),
    _example("nothing said of something", "[]", 0.0),
    _example("nothing said of nothing", "[]", 1.0, _NONE),
    _example("something said of nothing", _said(("liver", _RIGHT)), 0.0, _NONE),
    _example("babble of nothing", "liver liver", 0.0, _NONE),
    _example("cut off after the first box", _said(("liver", _RIGHT))[:-1] + ', {"bbox_2d": [1', 1.0),
    _example("reversed corners", _said(("liver", [300, 500, 100, 100])), 0.0),
    _example("an empty text", "", 0.0),
    _example("no text at all", None, 0.0),
    _example("MedMO's grammar", "Liver <box>[[100, 100, 300, 500]]</box>", 1.0, profile=MEDMO),
    _example("boxes without label are the questioned one's", "<box>[[100, 100, 300, 500]]</box>", 1.0, profile=MEDMO),
    _example("labels left out where they tell the boxes apart", _said(("", _RIGHT), ("", _SECOND)), 0.0, _PAIR),
    _example("a grammar without labels", f"[{_RIGHT}, {_SECOND}]", 1.0, _PAIR, profile=_BARE),
    _example("another task", "yes", None, task="vqa"),
)

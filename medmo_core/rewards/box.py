"""Reward `box`: boxes that lie where the true ones do."""

from collections.abc import Sequence
from typing import Any

import torch

from medmo_kernels import box_reward as score_boxes

from ..boxes import GRAMMARS, Boxes, parse_boxes
from ..metrics.matching import box_problems
from ..metrics.text import completion_text
from ..profile import MEDMO, QWEN3_VL, CheckpointProfile
from .example import Example

TASKS = ("grounding",)


def box_reward(
    completions: Sequence[Any],
    *,
    task: Sequence[str],
    boxes: Sequence[Boxes | None],
    image_size: Sequence[tuple[int, int] | None],
    profile: Sequence[CheckpointProfile] | CheckpointProfile,
    formula: str = "overlap",
    **columns: Any,
) -> list[float | None]:
    """Score the boxes of each completion against the true ones, matched one to one within each label.

    A pair pays (IoU + max(0, GIoU)) / 2; the score is the sum over the larger number of boxes. Size does not matter; a
    box that overlaps no true box of its label, and a second box on one target, earn nothing and cost. Saying that there
    is nothing, where nothing is, scores 1.

    Args:
        completions: texts, or chats that end with one.
        task: of each sample.
        boxes: the true boxes.
        image_size: (width, height) px.
        profile: frame and grammar of the completion.
        formula: `overlap`, `iou`, `f1` or `medmo` of `medmo_kernels.box_reward`.
        columns: not used.

    Returns:
        Scores in [0, 1], or None where the task is not grounding or there is no image. A completion without readable
        boxes and without a statement that there are none scores 0; boxes that cannot be used are left out, partly
        outside ones are clipped. Where nothing is true, a completion with any fault scores 0. Labels are not compared
        where the grammar or the true boxes have none; a box without label is the questioned one where all true boxes
        bear one label.
    """
    profiles = [profile] * len(completions) if isinstance(profile, CheckpointProfile) else profile
    scores: list[float | None] = [None] * len(completions)
    rows: list[int] = []
    found: list[Boxes] = []
    truth: list[Boxes] = []
    for index, (text, kind, true_boxes, size, spoken) in enumerate(
        zip(completions, task, boxes, image_size, profiles, strict=True)
    ):
        if kind not in TASKS or true_boxes is None or size is None:
            continue
        parsed = parse_boxes(completion_text(text), spoken.text_size(size), spoken.grammar, spoken.frame)
        scores[index] = 0.0
        if parsed.grammar is None or (len(true_boxes) == 0 and not parsed.ok):
            continue
        rows.append(index)
        found.append(parsed.boxes.resize(size))
        labelled = GRAMMARS[spoken.grammar].labels != "none"
        truth.append(true_boxes if labelled else true_boxes.with_labels([""] * len(true_boxes)))
    problems = box_problems(found, truth)
    result = score_boxes(
        problems.pred, problems.truth, problems.pred_offsets, problems.truth_offsets,
        pred_labels=problems.pred_labels, truth_labels=problems.truth_labels, image_size=problems.image_size,
        formula=formula,
    )  # fmt: skip
    for index, score in zip(rows, result.score.tolist(), strict=True):
        scores[index] = min(max(score, 0.0), 1.0)
    return scores


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
    _example("half of it", _said(("liver", _LEFT_HALF)), 0.5),
    _example("another label", _said(("spleen", _RIGHT)), 0.0),
    _example("a box that overlaps nothing", _said(("liver", _AWAY)), 0.0),
    _example("a spurious box costs", _said(("liver", _RIGHT), ("liver", _AWAY)), 0.5),
    _example("a duplicate costs", _said(("liver", _RIGHT), ("liver", _RIGHT)), 0.5),
    _example("one of two", _said(("left kidney", _RIGHT)), 0.5, _PAIR),
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

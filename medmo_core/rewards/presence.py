"""Reward `presence`: says rightly whether there is anything to point at."""

from collections.abc import Sequence
from typing import Any

import torch

from ..boxes import AnyBoxes, Boxes
from ..profile import QWEN3_VL, CheckpointProfile
from .box_answers import ParsedAnswers, box_answers
from .example import Example
from .plain import reads_plain


@reads_plain
def presence_reward(
    completions: Sequence[Any],
    *,
    task: Sequence[str],
    boxes: Sequence[AnyBoxes | None],
    image_size: Sequence[tuple[int, int] | None],
    profile: Sequence[CheckpointProfile] | CheckpointProfile,
    parsed_boxes: ParsedAnswers | None = None,
    **columns: Any,
) -> list[float | None]:
    """Score 1 where a completion points at something and something is there, or says that nothing is and nothing is.

    The `box` reward gives a box that misses no more than the answer "nothing", as the metrics do; a model that is
    unsure learns little from that about when to answer at all. This reward teaches it, and no number of boxes earns
    more than one.

    Args:
        completions, task, boxes, image_size, profile, parsed_boxes, columns: arguments of `box`.

    Returns:
        1, 0, or None where the task is not grounding or there is no image. A completion without readable boxes and
        without a statement that there are none scores 0; so does one with any fault where nothing is true.
    """
    answers = box_answers(completions, task, boxes, image_size, profile, parsed_boxes)
    says = answers.problems.pred_offsets.diff() > 0
    holds = answers.problems.truth_offsets.diff() > 0
    return answers.filled((says == holds).double().tolist())


_SIZE = (200, 100)
_LIVER = Boxes(torch.tensor([[20.0, 10.0, 60.0, 50.0]]), "pixel", _SIZE, ("liver",))
_NONE = Boxes.empty(_SIZE)


def _example(
    about: str, completion: Any, score: float | None, truth: Boxes = _LIVER, task: str = "grounding"
) -> Example:
    columns = {"task": task, "boxes": truth, "image_size": _SIZE, "profile": QWEN3_VL}
    return Example(about, completion, score, columns)


_BOX = '{"bbox_2d": [700, 700, 900, 900], "label": "liver"}'

EXAMPLES = (
    _example("a box, however far off, of something", f"[{_BOX}]", 1.0),
    _example("many boxes earn no more", f"[{_BOX}, {_BOX}]", 1.0),
    _example("nothing said of something", "[]", 0.0),
    _example("nothing said of nothing", "[]", 1.0, _NONE),
    _example("something said of nothing", f"[{_BOX}]", 0.0, _NONE),
    _example("babble", "liver liver", 0.0),
    _example("babble of nothing", "liver liver", 0.0, _NONE),
    _example("an empty text", "", 0.0),
    _example("no text at all", None, 0.0),
    _example("another task", "yes", None, task="vqa"),
)

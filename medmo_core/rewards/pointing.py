"""Reward `pointing`: says rightly whether there is anything to point at, and points towards it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medmo_kernels.giou import overlap_terms

from ..boxes import Boxes
from ..image_boxes import AnyBoxes
from ..metrics.matching import BoxProblems
from ..profile import QWEN3_VL, CheckpointProfile
from .box_answers import box_answers
from .example import Example


def pointing_reward(
    completions: Sequence[Any],
    *,
    task: Sequence[str],
    boxes: Sequence[AnyBoxes | None],
    image_size: Sequence[tuple[int, int] | None],
    profile: Sequence[CheckpointProfile] | CheckpointProfile,
    **columns: Any,
) -> list[float | None]:
    """Score the answer "nothing" by whether it is right, and boxes by how near they come to anything that is sought.

    It stands beside `box`, which gives a box that misses no more than the answer "nothing", as the metrics do: a model
    that is unsure learns little from that about when to answer, and nothing about where to look. For a completion with
    boxes where something is there:

        1/2 + mean over its boxes of (1 + GIoU with the nearest true box of its label) / 4

    so any box beats "nothing", nearer is better, size does not matter, and a number of boxes earns no more than the
    mean of them. What it lacks, that each target be found once, is what `box` pays for.

    Args:
        completions, task, boxes, image_size, profile, columns: as for `box`.

    Returns:
        Scores in [0, 1], or None where the task is not grounding or there is no image. Where nothing is true, 1 for a
        statement that there is nothing and 0 for all else; where something is, 0 for that statement. A completion
        without readable boxes and without such a statement scores 0. A box of a label that is not sought counts as
        infinitely far.
    """
    answers = box_answers(completions, task, boxes, image_size, profile)
    problems = answers.problems
    num_said, num_true = problems.pred_offsets.diff(), problems.truth_offsets.diff()
    owner = torch.arange(len(num_said)).repeat_interleave(num_said)
    near = torch.zeros(len(num_said), dtype=torch.float64).index_add(0, owner, (1 + nearest_giou(problems)) / 4)
    points = 0.5 + near / num_said.clamp(min=1)
    says, holds = num_said > 0, num_true > 0
    return answers.filled(torch.where(says & holds, points, (says == holds).double()).tolist())


def nearest_giou(problems: BoxProblems) -> Tensor:
    """Return the largest GIoU of each predicted box with a true one of its sample and label; -1 where there is none.

    Returns:
        (P,) float64.
    """
    num_said, num_true = problems.pred_offsets.diff(), problems.truth_offsets.diff()
    owner = torch.arange(len(num_said)).repeat_interleave(num_said)
    each = num_true[owner]  # true boxes that a predicted one is held against
    said = torch.arange(len(owner)).repeat_interleave(each)
    first = problems.truth_offsets[owner] - (each.cumsum(0) - each)
    true = torch.arange(len(said)) + first.repeat_interleave(each)
    giou = overlap_terms(problems.pred[said], problems.truth[true])[1].double()
    giou = giou.masked_fill(problems.pred_labels[said] != problems.truth_labels[true], -1.0)
    return torch.full((len(owner),), -1.0, dtype=torch.float64).scatter_reduce(0, said, giou, "amax")


_SIZE = (200, 100)
_LIVER = Boxes(torch.tensor([[20.0, 10.0, 60.0, 50.0]]), "pixel", _SIZE, ("liver",))
_NONE = Boxes.empty(_SIZE)


def _example(
    about: str, completion: Any, score: float | None, truth: Boxes = _LIVER, task: str = "grounding"
) -> Example:
    columns = {"task": task, "boxes": truth, "image_size": _SIZE, "profile": QWEN3_VL}
    return Example(about, completion, score, columns)


def _box(*corners: int, label: str = "liver") -> str:
    return f'{{"bbox_2d": {list(corners)}, "label": "{label}"}}'


_RIGHT, _BESIDE = _box(100, 100, 300, 500), _box(500, 100, 700, 500)

EXAMPLES = (
    _example("the true box", f"[{_RIGHT}]", 1.0),
    _example("one width beside it", f"[{_BESIDE}]", 0.5 + (1 - 1 / 3) / 4),
    _example("many boxes earn their mean", f"[{_RIGHT}, {_BESIDE}]", 0.75 + (1 - 1 / 3) / 8),
    _example("another label", f"[{_box(100, 100, 300, 500, label='spleen')}]", 0.5),
    _example("nothing said of something", "[]", 0.0),
    _example("nothing said of nothing", "[]", 1.0, _NONE),
    _example("something said of nothing", f"[{_RIGHT}]", 0.0, _NONE),
    _example("babble", "liver liver", 0.0),
    _example("babble of nothing", "liver liver", 0.0, _NONE),
    _example("an empty text", "", 0.0),
    _example("no text at all", None, 0.0),
    _example("another task", "yes", None, task="vqa"),
)

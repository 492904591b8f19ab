"""Pay of each reward for the same answers to questions with several targets: right ones, and ones with one fault.

No model is asked: the answers are the true boxes, changed. It shows what the rewards tell apart before any run does.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random

import torch

from medmo_core.boxes import Boxes
from medmo_core.data.records.sample import Sample
from medmo_core.profile import CheckpointProfile
from medmo_core.rewards import REWARDS

JUDGED = ("box", "presence", "medmo_box")
NUM_ELSEWHERE = 3
MISS, FAR_MISS = 0.2, 1.5
"""Shares of a box's sides by which it is moved along both axes."""

Labelled = list[tuple[str, tuple[float, float, float, float]]]
Change = Callable[[Labelled, tuple[int, int], Random], Labelled]
"""Makes an answer of the true boxes with their labels, the size of the picture and a source of chance."""


def _elsewhere(truth: Labelled, size: tuple[int, int], rng: Random) -> Labelled:
    width, height = (side / 5 for side in size)
    corners = ((rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)) for _ in range(NUM_ELSEWHERE))
    label = truth[0][0] if truth else "target"
    return truth + [(label, (x, y, x + width, y + height)) for x, y in corners]


def _moved(truth: Labelled, size: tuple[int, int], rng: Random, *, share: float) -> Labelled:
    def shift(low: float, high: float, side: int) -> tuple[float, float]:
        # Inwards, so that the picture's edge does not cut what is moved.
        by = share * (high - low) * (1 if low + high < side else -1)
        return max(0.0, min(low + by, side - 1)), max(1.0, min(high + by, side))

    moved = []
    for label, (x0, y0, x1, y1) in truth:
        (left, right), (top, bottom) = shift(x0, x1, size[0]), shift(y0, y1, size[1])
        moved.append((label, (left, top, right, bottom)))
    return moved


CHANGES: dict[str, Change] = {
    "as it is": lambda truth, size, rng: truth,
    "each box twice": lambda truth, size, rng: [box for box in truth for _ in range(2)],
    f"{NUM_ELSEWHERE} boxes more, anywhere": _elsewhere,
    "half of the boxes": lambda truth, size, rng: truth[: (len(truth) + 1) // 2],
    "the first box in place of every one": lambda truth, size, rng: [(label, truth[0][1]) for label, _ in truth],
    "moved by a fifth of their sides": partial(_moved, share=MISS),
    "moved by one and a half sides": partial(_moved, share=FAR_MISS),
    "nothing": lambda truth, size, rng: [],
}
"""Answer -> the true boxes, changed."""


def judge(samples: Sequence[Sample], profile: CheckpointProfile) -> dict[str, Mapping[str, float]]:
    """Return, for each kind of answer, the mean that each reward pays for it.

    Args:
        samples: questions that ask where something is; those with several targets and those with none are used.
        profile: grammar and frame of the answers.
    """
    several = [sample for sample in samples if len(sample.boxes) > 1]
    nothing = [sample for sample in samples if not sample.boxes]
    scores = {name: _scores(several, change, profile) for name, change in CHANGES.items()}
    scores["nothing, where nothing is"] = _scores(nothing, CHANGES["nothing"], profile)
    scores[f"{NUM_ELSEWHERE} boxes, where nothing is"] = _scores(nothing, _elsewhere, profile)
    return scores


def _scores(samples: Sequence[Sample], change: Change, profile: CheckpointProfile) -> Mapping[str, float]:
    columns = {
        "task": ["grounding"] * len(samples),
        "boxes": [sample.truth_boxes() for sample in samples],
        "image_size": [sample.images[0].size for sample in samples],
        "profile": profile,
    }
    texts = [_written(sample, change, profile, Random(index)) for index, sample in enumerate(samples)]
    return {name: statistics.fmean(score or 0.0 for score in REWARDS[name](texts, **columns)) for name in JUDGED}


def _written(sample: Sample, change: Change, profile: CheckpointProfile, rng: Random) -> str:
    size = sample.images[0].size
    assert size is not None
    said = change([(box.label, box.xyxy_px) for box in sample.boxes], size, rng)
    corners = torch.tensor([box for _, box in said], dtype=torch.float64).view(-1, 4)
    return profile.write_boxes(Boxes(corners, "pixel", size, tuple(label for label, _ in said)))

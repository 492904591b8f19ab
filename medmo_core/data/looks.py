"""Looks of a tokenised chat: where the boxes lie that its answers write, and while which tokens.

An answer that is boxes and nothing else is looked at twice: before its first token at all of its boxes, and while the
digits of a coordinate are said at the edge it names, which is the part of the box in that row or column of visual
tokens. An answer that writes no box looks at nothing. The two kinds of looks of an answer count 1 each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil

import torch

from ..batch.looks import Grid, Looks
from ..boxes import AnyBoxes, Boxes, ImageBoxes
from ..profile import CheckpointProfile
from .box_answers import NUMBER, BoxAnswer

ROUNDING = 1e-6
"""Of a cell's side: what a coordinate may be off."""
Share = tuple[float, float, float, float]
"""x0, y0, x1, y1 as shares of the picture's sides."""


@dataclass
class _Collected:
    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    boxes: list[tuple[int, int, Share]] = field(default_factory=list)

    def add(self, token: int, weight: float, boxes: Sequence[tuple[int, Share]]) -> None:
        self.boxes += [(len(self.tokens), image, box) for image, box in boxes]
        self.tokens.append(token)
        self.weights.append(weight)


def find_looks(
    answers: Sequence[BoxAnswer], profile: CheckpointProfile, grids: Sequence[Grid], num_tokens: int
) -> Looks | None:
    """Find the looks of a chat.

    Args:
        answers: its answers that are boxes.
        profile: how they write boxes.
        grids: frames, rows and columns of visual tokens of every picture.
        num_tokens: length of the chat.

    Returns:
        The looks; None where no answer is boxes.
    """
    found = _Collected()
    for answer in answers:
        _look_at(found, answer, profile, grids)
    if not found.tokens:
        return None
    return Looks(
        tokens=torch.tensor(found.tokens),
        weights=torch.tensor(found.weights),
        look_of=torch.tensor([look for look, _, _ in found.boxes], dtype=torch.int64),
        boxes=torch.tensor([box for _, _, box in found.boxes], dtype=torch.float32).view(-1, 4),
        images=torch.tensor([image for _, image, _ in found.boxes], dtype=torch.int64),
        grids=tuple(grids),
        start=0,
        stop=num_tokens,
    )


def _shares(boxes: AnyBoxes) -> list[tuple[int, Share]]:
    """Return the picture of every box and its corners as shares of the picture's sides."""
    per_image = boxes.per_image if isinstance(boxes, ImageBoxes) else (boxes,)
    return [
        (image, (x0 / width, y0 / height, x1 / width, y1 / height))
        for image, shown in enumerate(per_image)
        for width, height in [shown.size]
        for x0, y0, x1, y1 in shown.xyxy.tolist()
    ]


def _look_at(found: _Collected, answer: BoxAnswer, profile: CheckpointProfile, grids: Sequence[Grid]) -> None:
    """Add the looks of one answer."""
    boxes = _shares(answer.boxes)
    found.add(int(answer.positions[0]), 1.0, boxes)
    numbers, order = answer.coordinates(), _axis_order(profile)
    if not numbers or order is None:
        return
    said = [tokens[: max(1, len(tokens) - 1)] for _, tokens in numbers]  # the last digit adds next to nothing
    weight = 1.0 / sum(len(tokens) for tokens in said)
    for number, tokens in enumerate(said):
        image, box = boxes[number // 4]
        edge = _edge(box, order[number % 4], grids[image])
        for token in tokens:
            found.add(int(answer.positions[token]), weight, [(image, edge)])


@lru_cache(maxsize=16)
def _axis_order(profile: CheckpointProfile) -> tuple[int, ...] | None:
    """Return which corner coordinate each of a box's four whole numbers is: most grammars write x first, some y.

    None: boxes are not written in four whole numbers.
    """
    probe = Boxes(torch.tensor([[10.0, 60.0, 30.0, 90.0]]), "pixel", (100, 100))
    numbers = [int(number) for number in NUMBER.findall(profile.write_boxes(probe))]
    if len(numbers) != 4:
        return None
    return (0, 1, 2, 3) if numbers[0] < numbers[1] else (1, 0, 3, 2)


def _edge(box: Share, axis: int, grid: Grid) -> Share:
    """Return the part of a box in the row or column of visual tokens that its edge `axis` (x0, y0, x1, y1) lies in."""
    count = grid[1] if axis % 2 else grid[2]
    place = box[axis] * count
    # An edge on the border of two cells lies in the one that the box is in, whichever way it was rounded.
    cell = min(int(place + ROUNDING), count - 1) if axis < 2 else max(ceil(place - ROUNDING) - 1, 0)
    low, high = cell / count, (cell + 1) / count
    x0, y0, x1, y1 = box
    if axis % 2:
        return x0, max(y0, low), x1, min(y1, high)
    return max(x0, low), y0, min(x1, high), y1

"""Looks of a tokenised chat: where the boxes lie that its answers write, and while which tokens.

An answer that is boxes and nothing else is looked at twice: before its first token at all of its boxes, and while the
digits of a coordinate are said at the edge it names, which is the part of the box in that row or column of visual
tokens. An answer that writes no box looks at nothing. The two kinds of looks of an answer count 1 each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch import IGNORE_INDEX
from ..batch.looks import Grid, Looks
from ..boxes import AnyBoxes, Boxes, ImageBoxes
from ..profile import CheckpointProfile
from .text.tokenizer import Tokenizer

_NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")
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
    input_ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    answers: Sequence[str],
    where: AnyBoxes,
    profile: CheckpointProfile,
    tokenizer: Tokenizer,
    grids: Sequence[Grid],
) -> Looks | None:
    """Find the looks of a chat.

    Args:
        input_ids: (T,) tokens of the chat.
        labels: (T,) its labels.
        answers: texts of the assistant's turns, in order.
        where: boxes that know the sizes of the chat's pictures.
        profile: how the answers write boxes.
        tokenizer: tokenizer of the tokens.
        grids: frames, rows and columns of visual tokens of every picture.

    Returns:
        The looks; None where no answer is boxes, or where two answers follow one another without a question.
    """
    found = _Collected()
    learned = np.flatnonzero(labels != IGNORE_INDEX)
    runs = np.split(learned, np.flatnonzero(np.diff(learned) > 1) + 1) if len(learned) else []
    if len(runs) != len(answers):
        return None
    for run, answer in zip(runs, answers, strict=True):
        parsed = profile.read_boxes(answer, where)
        if parsed.ok and profile.write_boxes(parsed.boxes) == answer:
            words = [tokenizer.decode([i]) for i in input_ids[run].tolist()]
            _look_at(found, run, words, _shares(parsed.boxes), profile, grids)
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
        stop=len(input_ids),
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


def _look_at(
    found: _Collected,
    run: NDArray[np.int64],
    words: list[str],
    boxes: list[tuple[int, Share]],
    profile: CheckpointProfile,
    grids: Sequence[Grid],
) -> None:
    """Add the looks of one answer; `run` are the positions of its tokens, `words` their texts."""
    found.add(int(run[0]), 1.0, boxes)
    numbers, order = _numbers(words), _axis_order(profile)
    # Other numbers in the answer (the name of a picture, a vertebra), or fractions: which token is which is not known.
    if not boxes or order is None or len(numbers) != 4 * len(boxes):
        return
    said = [tokens[: max(1, len(tokens) - 1)] for tokens in numbers]  # the last digit adds next to nothing
    weight = 1.0 / sum(len(tokens) for tokens in said)
    for number, tokens in enumerate(said):
        image, box = boxes[number // 4]
        edge = _edge(box, order[number % 4], grids[image])
        for token in tokens:
            found.add(int(run[token]), weight, [(image, edge)])


def _numbers(words: list[str]) -> list[list[int]]:
    """Return the tokens of every whole number of a text that is not part of a word, such as `bbox_2d`."""
    owner = [i for i, word in enumerate(words) for _ in word]
    return [list(dict.fromkeys(owner[slice(*match.span())])) for match in _NUMBER.finditer("".join(words))]


@lru_cache(maxsize=16)
def _axis_order(profile: CheckpointProfile) -> tuple[int, ...] | None:
    """Return which corner coordinate each of a box's four whole numbers is: most grammars write x first, some y.

    None: boxes are not written in four whole numbers.
    """
    probe = Boxes(torch.tensor([[10.0, 60.0, 30.0, 90.0]]), "pixel", (100, 100))
    numbers = [int(number) for number in _NUMBER.findall(profile.write_boxes(probe))]
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

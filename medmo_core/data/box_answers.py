"""Answers of a tokenised chat that are boxes and nothing else, token by token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..batch import IGNORE_INDEX
from ..boxes import AnyBoxes
from ..profile import CheckpointProfile
from .text.tokenizer import Tokenizer

NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")
"""A whole number that is no part of a word, such as `bbox_2d`, and of no fraction."""


@dataclass(frozen=True)
class BoxAnswer:
    """Tokens of an answer and the boxes they say.

    Attributes:
        positions: (A,) positions of the tokens in the chat.
        words: texts of the tokens.
        boxes: boxes as the text says them.
    """

    positions: NDArray[np.int64]
    words: tuple[str, ...]
    boxes: AnyBoxes

    def coordinates(self) -> list[tuple[str, list[int]]]:
        """Return every whole number of the answer and which of the answer's tokens say it, where they are four a box.

        Nothing where there are others too (the name of a picture, a vertebra): which is which is not known then.
        """
        owner = [i for i, word in enumerate(self.words) for _ in word]
        numbers = [
            (match[0], list(dict.fromkeys(owner[slice(*match.span())])))
            for match in NUMBER.finditer("".join(self.words))
        ]
        return numbers if len(numbers) == 4 * len(self.boxes) else []


def box_answers(
    input_ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    answers: Sequence[str],
    where: AnyBoxes,
    profile: CheckpointProfile,
    tokenizer: Tokenizer,
) -> list[BoxAnswer]:
    """Find the answers of a chat that are boxes and nothing else.

    Args:
        input_ids: (T,) tokens of the chat.
        labels: (T,) its labels.
        answers: texts of the assistant's turns, in order.
        where: boxes that know the sizes of the chat's pictures.
        profile: how the answers write boxes.
        tokenizer: tokenizer of the tokens.

    Returns:
        The answers in order; none where two follow one another without a question.
    """
    learned = np.flatnonzero(labels != IGNORE_INDEX)
    runs = np.split(learned, np.flatnonzero(np.diff(learned) > 1) + 1) if len(learned) else []
    if len(runs) != len(answers):
        return []
    return list(_those_of_boxes(input_ids, runs, answers, where, profile, tokenizer))


def _those_of_boxes(
    input_ids: NDArray[np.int64],
    runs: Sequence[NDArray[np.int64]],
    answers: Sequence[str],
    where: AnyBoxes,
    profile: CheckpointProfile,
    tokenizer: Tokenizer,
) -> Iterator[BoxAnswer]:
    for run, answer in zip(runs, answers, strict=True):
        parsed = profile.read_boxes(answer, where)
        if parsed.ok and profile.write_boxes(parsed.boxes) == answer:
            yield BoxAnswer(run, tuple(tokenizer.decode([i]) for i in input_ids[run].tolist()), parsed.boxes)

"""Coordinates of a tokenised chat as distributions: a number's neighbours are nearly right.

Two readers place an edge a little apart, and cross-entropy with the number of one of them calls the next number as
wrong as the farthest. Here a coordinate v stands for all numbers u with weights exp(-(u - v)^2 / (2 spread^2)). Where
numbers are written in several tokens, the shares of a token are those of the numbers that begin with the tokens before
it, as the model has read them by then; numbers that end before it are left out.

Reference for coordinates of one token: Li et al., SimCC, arXiv 2107.03332 (normal label smoothing).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch.coordinates import NO_COORDINATE, Coordinates
from ..errors import InputError
from ..profile import CheckpointProfile
from .box_answers import BoxAnswer
from .text.tokenizer import Tokenizer

LARGEST = 1000
"""Of the numbers that a coordinate in thousandths of the image can be."""


def spread_numbers(tokenizer: Tokenizer, profile: CheckpointProfile, spread: float) -> Coordinates:
    """Return the distributions of the numbers that a checkpoint writes.

    Args:
        tokenizer: tokenizer of the answers.
        profile: how they write boxes.
        spread: standard deviation in thousandths of the image's side, above 0.

    Raises:
        ValueError: the checkpoint does not write thousandths.
    """
    if profile.frame != "norm1000":
        raise InputError(
            f"the checkpoint writes boxes in frame {profile.frame!r}, expected 'norm1000': coordinates can be spread "
            "over their neighbours where they are thousandths of the image; set train.coordinate_spread=0"
        )
    numbers = np.arange(0, LARGEST + 1, profile.step)
    written = [tuple(tokenizer.encode(str(number))) for number in numbers]
    tokens = sorted({token for parts in written for token in parts})
    places = max(len(parts) for parts in written)
    shares = np.zeros((LARGEST + 1, places, len(tokens)), np.float32)
    own = np.zeros((LARGEST + 1, places), np.int64)
    weights = np.exp(-0.5 * ((numbers[:, None] - numbers) / spread) ** 2)
    for place in range(places):
        said = np.array([tokens.index(parts[place]) if place < len(parts) else -1 for parts in written])
        beginnings = {parts[:place]: index for index, parts in enumerate(written)}
        begins = np.array([beginnings[parts[:place]] for parts in written])
        likely = weights * (begins[:, None] == begins) * (said >= 0)
        has_place = said >= 0
        rows = likely[has_place] @ np.eye(len(tokens))[said]
        shares[numbers[has_place], place] = rows / rows.sum(axis=1, keepdims=True)
        own[numbers[has_place], place] = said[has_place]
    return Coordinates(
        written=dict(zip(numbers.tolist(), written, strict=True)),
        places=places,
        tokens=torch.tensor(tokens),
        shares=torch.from_numpy(shares).flatten(0, 1),
        own=torch.from_numpy(own).flatten(),
    )


def coordinate_codes(
    coordinates: Coordinates, answers: Sequence[BoxAnswer], input_ids: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Return the code of every token of a chat that says a coordinate.

    Args:
        coordinates: distributions of the numbers.
        answers: answers of the chat that are boxes.
        input_ids: (T,) its tokens.

    Returns:
        (T,), `NO_COORDINATE` where none is said; None where none is said anywhere.
    """
    codes = np.full(len(input_ids), NO_COORDINATE)
    for answer in answers:
        for text, said in answer.coordinates():
            number, positions = int(text), answer.positions[said]
            # Not so where digits share a token with what stands beside them, or the number is none of a profile's.
            if coordinates.written.get(number) == tuple(input_ids[positions].tolist()):
                codes[positions] = number * coordinates.places + np.arange(len(said))
    return None if (codes == NO_COORDINATE).all() else codes

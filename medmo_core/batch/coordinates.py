"""Distributions that stand for the coordinates a batch says.

Shapes: C tokens that numbers are written with, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

NO_COORDINATE = -1


@dataclass(frozen=True)
class Coordinates:
    """Distributions over the next token at every place of every number.

    Attributes:
        written: number -> the tokens it is written with.
        places: number of tokens of the longest; a code is that many times a number and the place of a token in it.
        tokens: (C,) int64, the tokens that any number is written with, in increasing order.
        shares: (K, C) float32, of each code how likely each of `tokens` is; 0 at places that do not occur.
        own: (K,) int64, index in `tokens` of the one that stands there; 0 at places that do not occur.
    """

    written: dict[int, tuple[int, ...]]
    places: int
    tokens: Tensor
    shares: Tensor
    own: Tensor

    def to(self, device: torch.device | str) -> Self:
        """Return a copy whose tensors live on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("tokens", "shares", "own")})

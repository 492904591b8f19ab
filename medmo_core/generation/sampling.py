"""Sampling of tokens from hidden states: the distribution, its log-probabilities and its random numbers.

Convention of the log-probabilities: those of the full distribution at the sampling temperature, before top-k, top-p and
the ban on placeholders, which is what `MedMO.token_logprobs` gives the trainer for the same tokens. Neither mask is
replayed in training. The ban takes away what probability the placeholders have, next to nothing in a trained model.
Top-k and top-p take much more: what they sample from is another distribution than the one whose log-probabilities are
returned, so they are for answering, and a policy gradient must not be fed with them.

Shapes: B rows, E embedding width, V vocabulary.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError

LEAST_TEMPERATURE = 1e-6

@dataclass(frozen=True)
class Sampling:
    """Settings of drawing continuations, and of their end.

    Attributes:
        max_new_tokens: most tokens of a continuation, the stop token included.
        temperature: number that the logits are divided by, `LEAST_TEMPERATURE` or more; 0 takes the likeliest token.
        top_p: sample from the fewest likeliest tokens that hold this much probability.
        top_k: sample from the so many likeliest tokens; 0: from all.
        num_generations: continuations of a prompt.
        stop_token_ids: tokens that end a continuation.
        seed: names the random numbers.

    Raises:
        ValueError: a setting is out of range.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    num_generations: int
    stop_token_ids: frozenset[int]
    seed: int

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_generations", "top_k", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(f"{name} is {value!r}, expected a whole number")
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"{name} is {value!r}, expected a finite number")
        if self.max_new_tokens < 1 or self.num_generations < 1:
            raise InputError(
                f"max_new_tokens ({self.max_new_tokens}) and num_generations ({self.num_generations}) must be at least "
                "1"
            )
        if 0 < self.temperature < LEAST_TEMPERATURE:  # logits divided by less are no finite numbers
            raise InputError(
                f"temperature is {self.temperature!r}, below {LEAST_TEMPERATURE:g}; write 0 for the likeliest token"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise InputError(
                f"temperature ({self.temperature}) and top_k ({self.top_k}) must not be negative, top_p "
                f"({self.top_p}) must be in (0, 1]"
            )

    def noise(self, name: str, occurrence: int, generation: int) -> NDArray[np.float64] | None:
        """Return the numbers in [0, 1) that one continuation is drawn with, a separate stream; None when greedy."""
        if self.temperature == 0:
            return None
        key = [self.seed & 0xFFFFFFFF, zlib.crc32(name.encode()), occurrence, generation]
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        return stream.random(self.max_new_tokens)


class Sampler:
    """Chooser of tokens from hidden states, with their log-probabilities.

    Args:
        head_weight: (V, E); read at every call, not copied.
        sampling: settings of the draw.
        banned: token ids that are never chosen.
    """

    def __init__(self, head_weight: Tensor, sampling: Sampling, banned: Sequence[int]) -> None:
        self.weight = head_weight
        self.temperature, self.top_p, self.top_k = sampling.temperature, sampling.top_p, sampling.top_k
        self.banned = torch.tensor(banned, dtype=torch.long, device=head_weight.device)

    def __call__(self, hidden: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
        """Choose one token per row from (B, E) states and, unless greedy, (B,) float64 numbers in [0, 1)."""
        logits = F.linear(hidden, self.weight)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logps = (logits / (self.temperature or 1.0)).log_softmax(-1)
        allowed = logps.index_fill(1, self.banned, float("-inf"))
        tokens = allowed.argmax(-1) if uniform is None else self._choose(allowed, uniform)
        return tokens, logps.gather(1, tokens[:, None]).squeeze(1)

    def _choose(self, logps: Tensor, uniform: Tensor) -> Tensor:
        """Invert the cumulative distribution, in float64 so that large vocabularies keep their tails."""
        order = None
        if self.top_k or self.top_p < 1.0:
            logps, order = logps.sort(dim=-1, descending=True, stable=True)
        wide = logps.double()
        probs = (wide - wide.amax(-1, keepdim=True)).exp()  # what the ban leaves may be too little to differ from 0
        if self.top_k:
            probs[:, self.top_k :] = 0.0
        if self.top_p < 1.0:
            probs = probs / probs.sum(-1, keepdim=True)
            before = probs.cumsum(-1) - probs
            probs = probs.masked_fill(before >= self.top_p, 0.0)
        cumulative = probs.cumsum(-1)
        total = cumulative[:, -1:]
        point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        # Probabilities that are NaN put the point past the end; the caller finds the NaN in the log-probabilities.
        index = torch.searchsorted(cumulative, point, right=True).clamp_(max=cumulative.shape[1] - 1)
        return (index if order is None else order.gather(1, index)).squeeze(1)

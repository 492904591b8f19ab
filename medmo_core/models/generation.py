"""Continue packed prompts with a key/value cache.

Each prompt is run once and its keys and values are stored once, however many continuations are drawn from it; rows
that are done are dropped.

Shapes: B rows (prompts times generations, those still running), E embedding width.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import Batch
from ..modules.kv_cache import KVCache

if TYPE_CHECKING:
    from .medmo import MedMO

DROP_RATIO = 0.8
"""The cache is compacted when the running rows fall to this share of its rows."""


@dataclass
class Generation:
    """One continuation.

    Attributes:
        tokens: sampled tokens, without the stop token.
        logps: log-probability of every sampled token under the full distribution at the sampling temperature (at 1
            for greedy decoding), before top-k, top-p and the ban on placeholders: what `MedMO.token_logprobs` returns
            for the same tokens. When `finished`, the last entry is the stop token's, so there is one more than tokens.
        finished: a stop token was sampled.
        stop_token: which one, or None.
    """

    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finished: bool = False
    stop_token: int | None = None


@torch.no_grad()
def generate(
    model: MedMO,
    batch: Batch,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    num_generations: int = 1,
    stop_token_ids: Sequence[int],
    seed: int = 0,
) -> list[list[Generation]]:
    """Continue every document of a batch.

    A sample is drawn with random numbers of its own, named by `seed`, the document's sample id (its index where the
    batch has no ids; repeated ids are told apart by their order) and the number of the generation: what else is in the
    batch does not matter.

    Args:
        model: the model; evaluated as it stands, without gradients.
        batch: prompts with their images.
        max_new_tokens: most tokens sampled per continuation, the stop token included.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: sample from the fewest likeliest tokens that hold this much probability.
        top_k: sample from the so many likeliest tokens; 0: from all.
        num_generations: continuations per prompt; the prompt is run once.
        stop_token_ids: tokens that end a continuation.
        seed: names the random numbers.

    Returns:
        One list per document of `num_generations` continuations. Image and video placeholders are never sampled.

    Raises:
        ValueError: a setting is out of range, or the batch shares prompts.
    """
    _check_settings(max_new_tokens, temperature, top_p, top_k, num_generations)
    if batch.prompt_of is not None:
        raise ValueError(
            "generate continues whole documents, this batch holds branches of shared prompts (prompt_of): pack each "
            "prompt once, without share_prefixes, and ask for num_generations"
        )
    lengths, device = batch.lengths(), batch.input_ids.device
    cache = KVCache(lengths, max_new_tokens, num_generations, device)
    hidden = model.hidden_states(batch, batch.cu_seqlens[1:].long() - 1, keep_kv=cache.keep_prompt)
    starts = torch.stack([part.max() + 1 for part in batch.position_ids.split(lengths, dim=1)])
    rows = torch.arange(len(lengths), device=device).repeat_interleave(num_generations)
    hidden, positions = hidden[rows], starts[rows]
    sampler = _Sampler(model, temperature, top_p, top_k)
    noise = _noise(batch, num_generations, max_new_tokens, seed) if temperature > 0 else None
    results = [Generation() for _ in range(len(rows))]
    running = list(range(len(rows)))  # results that the rows of the cache belong to; finished rows stay until dropped
    stop = set(stop_token_ids)
    for step in range(max_new_tokens):
        uniform = None if noise is None else torch.from_numpy(noise[running, step]).to(device)
        tokens, logps = sampler(hidden, uniform)
        for row, (token, logp) in enumerate(zip(tokens.tolist(), logps.tolist(), strict=True)):
            _extend(results[running[row]], token, logp, stop)
        alive = [row for row, index in enumerate(running) if not results[index].finished]
        if not alive or step + 1 == max_new_tokens:
            break
        if len(alive) <= DROP_RATIO * len(running):
            kept = cache.select(alive)
            tokens, positions = tokens[kept], positions[kept]
            running = [running[row] for row in alive]
        hidden = model.decoder.step(tokens, positions + step, cache.attend)
        cache.advance()
    return [results[first : first + num_generations] for first in range(0, len(results), num_generations)]


def _extend(result: Generation, token: int, logp: float, stop: set[int]) -> None:
    if result.finished:
        return
    result.logps.append(logp)
    if token in stop:
        result.finished, result.stop_token = True, token
    else:
        result.tokens.append(token)


class _Sampler:
    """Turn hidden states into tokens and their log-probabilities."""

    def __init__(self, model: MedMO, temperature: float, top_p: float, top_k: int) -> None:
        self.weight = model.head_weight
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.banned = torch.tensor(model.config.placeholder_token_ids, device=self.weight.device)

    def __call__(self, hidden: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
        """Choose one token per row from (B, E) states and, unless greedy, (B,) float64 numbers in [0, 1)."""
        logits = F.linear(hidden, self.weight)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logps = (logits / (self.temperature or 1.0)).log_softmax(-1)
        allowed = logps.index_fill(1, self.banned, float("-inf"))
        tokens = allowed.argmax(-1) if uniform is None else self._draw(allowed, uniform)
        return tokens, logps.gather(1, tokens[:, None]).squeeze(1)

    def _draw(self, logps: Tensor, uniform: Tensor) -> Tensor:
        """Invert the cumulative distribution, in float64 so that large vocabularies keep their tails."""
        order = None
        if self.top_k or self.top_p < 1.0:
            logps, order = logps.sort(dim=-1, descending=True, stable=True)
        probs = logps.double().exp()
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


def _noise(batch: Batch, num_generations: int, steps: int, seed: int) -> np.ndarray:
    """Return (rows, steps) float64 numbers in [0, 1), one independent stream per row."""
    seen: Counter[str] = Counter()
    streams = []
    for index in range(batch.num_documents):
        name = batch.document_name(index)
        for generation in range(num_generations):
            key = [seed & 0xFFFFFFFF, zlib.crc32(name.encode()), seen[name], generation]
            streams.append(np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(steps))
        seen[name] += 1
    return np.stack(streams)


def _check_settings(max_new_tokens: int, temperature: float, top_p: float, top_k: int, num_generations: int) -> None:
    if max_new_tokens < 1 or num_generations < 1:
        raise ValueError(
            f"max_new_tokens ({max_new_tokens}) and num_generations ({num_generations}) must be at least 1"
        )
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise ValueError(
            f"temperature ({temperature}) and top_k ({top_k}) must not be negative, top_p ({top_p}) must be in (0, 1]"
        )

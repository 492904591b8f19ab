"""Continue packed prompts with a key/value cache.

Each prompt is run once and its keys and values are stored once, however many continuations are drawn from it. A fixed
number of rows is kept busy: where continuations have ended, the next ones take their place, and a prompt is run when
the first of its continuations is due.

Shapes: B rows (the continuations that are decoded together), E embedding width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..batch import Batch
from .kv_cache import KeepKV, KVCache, StepCache, sharing_pays
from .sampling import Sampler, Sampling

TURNOVER = 0.8
"""Rows are dropped and started when those still running fall to this share: one by one, each would cost a copy of the
cache, and prompts would be run singly."""


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


class StepDecoder(Protocol):
    """A decoder that can run one token of each sequence against a cache."""

    def step(self, token_ids: Tensor, positions: Tensor, cache: StepCache) -> Tensor:
        """Return the (B, E) states of (B,) tokens at (B,) positions."""
        ...


class DecodingConfig(Protocol):
    """The one setting of a model that decoding reads."""

    @property
    def placeholder_token_ids(self) -> tuple[int, ...]:
        """Tokens that stand for images and videos, and are never sampled."""
        ...


class Decodes(Protocol):
    """A model whose prompts can be continued."""

    @property
    def config(self) -> DecodingConfig:
        """Sizes and token ids."""
        ...

    @property
    def decoder(self) -> StepDecoder:
        """Decoder that continues a prompt token by token."""
        ...

    @property
    def head_weight(self) -> Tensor:
        """(V, E) weight that turns hidden states into logits."""
        ...

    def hidden_states(self, batch: Batch, rows: Tensor | None = None, *, keep_kv: KeepKV | None = None) -> Tensor:
        """Run whole prompts; return the states of `rows` and hand every layer's keys and values to `keep_kv`."""
        ...


class Prompts(Protocol):
    """Prompts that are packed, and run, when the first of their continuations is due."""

    @property
    def names(self) -> Sequence[str]:
        """One name per prompt; it names the prompt's random numbers."""
        ...

    def batch(self, numbers: range) -> Batch:
        """Pack the prompts of the given numbers, one document each, on the model's device."""
        ...


@dataclass
class _Row:
    """A row of the cache: what it adds to, and with which random numbers."""

    result: Generation
    noise: NDArray[np.float64] | None
    ended: bool = False

    def extend(self, token: int, logp: float, sampling: Sampling) -> None:
        if self.ended:
            return
        self.result.logps.append(logp)
        if token in sampling.stop_token_ids:
            self.result.finished, self.result.stop_token = True, token
        else:
            self.result.tokens.append(token)
        self.ended = self.result.finished or len(self.result.logps) == sampling.max_new_tokens

    @property
    def uniform(self) -> float:
        """The number that the next token is drawn with."""
        return 0.0 if self.noise is None or self.ended else self.noise[len(self.result.logps)]


@torch.no_grad()
def generate(
    model: Decodes, prompts: Batch | Prompts, sampling: Sampling, num_rows: int | None = None
) -> list[list[Generation]]:
    """Continue every prompt.

    Each continuation is drawn with separate random numbers, named by the seed, the prompt's name (repeated names are
    distinguished by their order) and the number of the generation: what is decoded beside it changes nothing but the
    rounding of differently shaped products.

    Args:
        model: model as it stands, run without gradients; nothing of it is kept.
        prompts: documents of a batch, with their images, which are run together (the name of a document is its sample
            id, or its index where the batch has no ids); or prompts that are run when they are due.
        sampling: settings of the draw.
        num_rows: continuations decoded at the same time; None: all.

    Returns:
        One list per prompt of `num_generations` continuations. Image and video placeholders are never sampled.

    Raises:
        ValueError: a batch shares prompts, or there is room for no row.
    """
    if num_rows is not None and num_rows < 1:
        raise ValueError(f"num_rows is {num_rows}, expected at least 1")
    if not isinstance(prompts, Batch):
        return _Decoding(model, prompts.names, prompts.batch, sampling, num_rows).finish()
    names = [prompts.document_name(index) for index in range(prompts.num_documents)]
    decoding = _Decoding(model, names, lambda _: prompts, sampling, num_rows)
    decoding.run_prompts(range(len(names)))
    return decoding.finish()


class _Decoding:
    """The rows of a cache at work."""

    def __init__(
        self,
        model: Decodes,
        names: Sequence[str],
        pack: Callable[[range], Batch],
        sampling: Sampling,
        num_rows: int | None,
    ) -> None:
        self.model, self.names, self.pack, self.sampling = model, names, pack, sampling
        self.device = model.head_weight.device
        self.sampler = Sampler(model.head_weight, sampling, model.config.placeholder_token_ids)
        self.results = [[Generation() for _ in range(sampling.num_generations)] for _ in names]
        self.total = len(names) * sampling.num_generations
        self.num_rows = min(self.total, self.total if num_rows is None else num_rows)
        self.begun = 0  # continuations, in the order of the prompts
        self.seen: Counter[str] = Counter()
        self.occurrences: list[int] = []  # of each prompt that was run, how many of its name were before it
        self.states: list[Tensor] = []  # the (E,) state of its last token
        self.starts: list[Tensor] = []  # and the position that it is continued at
        self.cache: KVCache | None = None
        self.rows: list[_Row] = []
        self.tokens = self.positions = torch.empty(0, dtype=torch.int64, device=self.device)  # (B,) to be run next

    def finish(self) -> list[list[Generation]]:
        """Decode until every continuation has ended."""
        while True:
            running = [index for index, row in enumerate(self.rows) if not row.ended]
            if self.begun < self.total and len(running) <= TURNOVER * self.num_rows:
                self.begin(running)
                continue
            if not running:
                return self.results
            assert self.cache is not None
            if len(running) <= TURNOVER * len(self.rows):
                self.keep(running)
            hidden = self.model.decoder.step(self.tokens, self.positions, self.cache)
            self.cache.advance()
            self.positions = self.positions + 1
            self.tokens = self.sample(hidden, self.rows)

    def begin(self, running: list[int]) -> None:
        """Let rows that have ended go, start as many, and sample the first token of each."""
        per_prompt = self.sampling.num_generations
        numbers = range(self.begun, min(self.total, self.begun + self.num_rows - len(running)))
        last = numbers[-1] // per_prompt + 1
        if last > len(self.states):
            self.run_prompts(range(len(self.states), last))
        owners = [number // per_prompt for number in numbers]
        self.begun = numbers.stop
        self.keep(running, owners)
        rows = [self.row(*divmod(number, per_prompt)) for number in numbers]
        tokens = self.sample(torch.stack([self.states[owner] for owner in owners]), rows)
        self.rows += rows
        self.tokens = torch.cat([self.tokens, tokens])
        self.positions = torch.cat([self.positions, torch.stack([self.starts[owner] for owner in owners])])

    def row(self, prompt: int, generation: int) -> _Row:
        """Return a row for one continuation of a prompt."""
        noise = self.sampling.noise(self.names[prompt], self.occurrences[prompt], generation)
        return _Row(self.results[prompt][generation], noise)

    def run_prompts(self, numbers: range) -> None:
        """Run prompts side by side, and keep their keys and values and the states of their last tokens."""
        batch = self.pack(numbers)
        if batch.prompt_of is not None:
            raise ValueError(
                "generate continues whole documents, this batch holds branches of shared prompts (prompt_of): pack "
                "each prompt once, without share_prefixes, and ask for num_generations"
            )
        lengths = batch.lengths()
        if self.cache is None:
            self.cache = KVCache(shared=sharing_pays(lengths, self.sampling.num_generations, self.device))
        self.cache.expect(lengths)
        rows = batch.cu_seqlens[1:].long() - 1
        self.states += self.model.hidden_states(batch, rows, keep_kv=self.cache.keep_prompt)
        self.starts += [part.max() + 1 for part in batch.position_ids.split(lengths, dim=1)]
        for number in numbers:
            self.occurrences.append(self.seen[self.names[number]])
            self.seen[self.names[number]] += 1

    def keep(self, running: list[int], owners: Sequence[int] = ()) -> None:
        """Keep the given rows, in cache and all, and make room behind them for rows of the given prompts."""
        assert self.cache is not None
        waiting = range(self.begun // self.sampling.num_generations, len(self.states))
        self.cache.arrange(running, owners, waiting)
        kept = torch.tensor(running, dtype=torch.int64, device=self.device)
        self.tokens, self.positions = self.tokens[kept], self.positions[kept]
        self.rows = [self.rows[index] for index in running]

    def sample(self, hidden: Tensor, rows: Sequence[_Row]) -> Tensor:
        """Sample a token for every row and write it down."""
        uniform = None
        if self.sampling.temperature > 0:
            uniform = torch.tensor([row.uniform for row in rows], dtype=torch.float64, device=self.device)
        tokens, logps = self.sampler(hidden, uniform)
        for row, token, logp in zip(rows, tokens.tolist(), logps.tolist(), strict=True):
            row.extend(token, logp, self.sampling)
        return tokens

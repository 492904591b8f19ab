"""Prompts run once, then continued token by token: by our decoder with its cache, by transformers' model with its own.

Float64 judges the logits after a small prompt and some given tokens, by one pass over them all without a cache; the
logits after all prompts of the size that is timed must be ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from medmo_core.batch import Batch
from medmo_core.generation.kv_cache import KVCache
from medmo_core.models.medmo import MedMO

from ..peers import transformers_model
from ..peers.transformers_model import Flavour
from ..suite.comparison import OURS, Ready, Way
from .documents import DocumentSizes, for_transformers, frozen_model, make_batch
from .judged import Judge, holding, reference_ops, widened


class Continuing(Protocol):
    """Prompts that were run, and what continues them."""

    logits: Tensor
    """(B, V) of the prompts' last tokens."""

    def rewind(self) -> None:
        """Forget what was continued."""
        ...

    def advance(self, tokens: Tensor) -> Tensor:
        """Continue every prompt by one token: (B,) to (B, V) logits."""
        ...


Begin = Callable[[], Continuing]
"""Run prompts."""


class OurContinuing:
    """Prompts run by our model; its cache is the one of `generate`.

    Args:
        model: ours.
        batch: one document per prompt.
    """

    def __init__(self, model: MedMO, batch: Batch) -> None:
        self.model, lengths = model, batch.lengths()
        self.cache = KVCache(shared=False)
        self.cache.expect(lengths)
        hidden = model.hidden_states(batch, batch.cu_seqlens[1:].long() - 1, keep_kv=self.cache.keep_prompt)
        self.cache.arrange([], prompts=range(len(lengths)))
        self.logits = F.linear(hidden, model.head_weight)
        self.start = self.cache.width, list(self.cache.own)
        self.first = next_positions(batch)
        self.positions = self.first

    def rewind(self) -> None:
        """Go back to the prompts; columns behind them are written again."""
        (width, own), self.positions = self.start, self.first
        self.cache.own = list(own)
        self.cache.go_to(width)

    def advance(self, tokens: Tensor) -> Tensor:
        """Continue every prompt by one token."""
        hidden = self.model.decoder.step(tokens, self.positions, self.cache)
        self.cache.advance()
        self.positions = self.positions + 1
        return F.linear(hidden, self.model.head_weight)


class TheirContinuing:
    """Prompts run by transformers' model.

    Args:
        model: transformers'.
        inputs: one row per prompt, none filled up.
        first: (B,) position of the token that comes next.
        room: number of further tokens that a static cache has room for, with the pass over them compiled as `generate`
            does it; 0: a cache that grows.
    """

    def __init__(self, model: Any, inputs: dict[str, Tensor], first: Tensor, *, room: int = 0) -> None:
        import transformers

        self.length = inputs["input_ids"].shape[1]
        config = model.config.get_text_config()
        self.cache: Any = transformers.DynamicCache(config=config)
        self.call = model
        if room:
            self.cache = transformers.StaticCache(config=config, max_cache_len=self.length + room)
            self.call = model.get_compiled_call(None)
        output = model(**inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.logits = output.logits[:, -1]
        self.static = bool(room)
        self.start = [] if self.static else [(layer.keys, layer.values) for layer in self.cache.layers]
        self.first = self.positions = first

    def rewind(self) -> None:
        """Go back to the prompts."""
        self.positions = self.first
        if self.static:
            for layer in self.cache.layers:
                layer.cumulative_length.fill_(self.length)
            return
        for layer, (keys, values) in zip(self.cache.layers, self.start, strict=True):
            layer.keys, layer.values = keys, values

    def advance(self, tokens: Tensor) -> Tensor:
        """Continue every prompt by one token."""
        output = self.call(
            input_ids=tokens[:, None],
            position_ids=self.positions.expand(3, -1)[..., None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.positions = self.positions + 1
        return output.logits[:, -1]


def continued(prompts: Continuing, tokens: Tensor) -> Tensor:
    """Continue prompts by (n, B) given tokens; returns the (B, V) logits after the last."""
    prompts.rewind()
    logits = prompts.logits
    for token in tokens:
        logits = prompts.advance(token)
    return logits.clone()


def next_positions(batch: Batch) -> Tensor:
    """Return the (n,) position that each document is continued at."""
    return torch.stack([part.max() + 1 for part in batch.position_ids.split(batch.lengths(), dim=1)])


@dataclass
class Prompts:
    """The prompts that all ways continue.

    Attributes:
        documents: the prompts, all of one length.
        device: device on which the ways run.
        dtype: dtype of weights and activations.
    """

    documents: DocumentSizes
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def model(self) -> MedMO:
        """Our model, with random weights."""
        return frozen_model(self.documents.preset, self.device, self.dtype)

    @cached_property
    def batches(self) -> tuple[Batch, Batch]:
        """The prompts that are timed, and a small one, for float64."""
        return make_batch(self.documents).to(self.device), make_batch(self.documents.first).to(self.device)

    def tokens(self, count: int, batch: Batch) -> Tensor:
        """Return (count, B) tokens to continue prompts by."""
        generator = torch.Generator().manual_seed(1)
        shape = (count, batch.num_documents)
        return torch.randint(0, self.documents.config.bos_token_id, shape, generator=generator).to(self.device)

    def begin_ours(self, batch: Batch) -> Begin:
        """Return what runs prompts by our model."""
        return torch.no_grad()(lambda: OurContinuing(self.model, batch))

    def begin_theirs(self, model: Any, batch: Batch, room: int) -> Begin:
        """Return what runs prompts by transformers' model, whose inputs are made beforehand."""
        inputs = for_transformers(batch, self.documents.config, self.dtype, packed=False)
        del inputs["labels"]
        first = next_positions(batch)
        return torch.no_grad()(lambda: TheirContinuing(model, inputs, first, room=room))

    @torch.no_grad()
    def judge(self, count: int) -> Judge:
        """Hold the logits after a small prompt and so many given tokens to those of one pass over them all."""
        batch = self.batches[1]
        tokens = self.tokens(count, batch).flatten()
        later = next_positions(batch) + torch.arange(count, device=self.device)
        longer = replace(
            batch,
            input_ids=torch.cat([batch.input_ids, tokens]),
            labels=None,
            position_ids=torch.cat([batch.position_ids, later.expand(3, -1)], dim=1),
            cu_seqlens=batch.cu_seqlens + torch.tensor([0, count], dtype=torch.int32, device=self.device),
        )
        rows = torch.tensor([longer.num_tokens - 1], device=self.device)

        def logits(model: MedMO) -> list[Tensor]:
            return [F.linear(model.hidden_states(longer, rows), model.head_weight)]

        with reference_ops():
            return Judge(logits(widened(self.model)), logits(self.model), self.dtype)


def ways(
    prompts: Callable[[], Prompts],
    flavours: Sequence[tuple[Flavour, str]],
    calls: Callable[[Begin, Continuing], dict[str, Callable[[], object]]],
    *,
    given: int = 0,
    room: int = 0,
) -> list[Way]:
    """Return ours and flavours of transformers' model.

    Args:
        prompts: shared by the ways.
        flavours: flavours, each with the reason why it is absent; a compiled one has a static cache.
        calls: given what runs the prompts, and the prompts run, says what is timed.
        given: tokens that the prompts are continued by when their logits are compared.
        room: number of tokens beyond the prompts' that a static cache has room for.
    """
    judge = cache(lambda: prompts().judge(given))  # held by the list of comparisons: logits, which are small

    @torch.no_grad()
    def build(flavour: Flavour | None) -> Ready:
        shared, held = prompts(), judge()
        if flavour is None:
            begins = [shared.begin_ours(batch) for batch in shared.batches]
        else:
            model = transformers_model.build(shared.model, replace(flavour, compiled=False), dtype=shared.dtype,
                                             train=False)  # fmt: skip
            begins = [shared.begin_theirs(model, batch, room if flavour.compiled else 0) for batch in shared.batches]
        timed, small = (begin() for begin in begins)
        # The size that is timed comes first: what is compiled is compiled for it.
        logits = [continued(begun, shared.tokens(given, batch))
                  for begun, batch in zip((timed, small), shared.batches, strict=True)]  # fmt: skip
        check = held.check(logits[1:], logits[:1], ours=flavour is None)
        return Ready(holding(shared, calls(begins[0], timed)), check)

    peers = [Way(flavour.name, partial(build, flavour), absent=absent) for flavour, absent in flavours]
    return [Way(OURS, partial(build, None), "ours"), *peers]

"""Prompts with an image each run up to the logits of their last tokens, keys and values kept to continue them."""

from functools import partial

import torch

from ..peers.transformers_model import Flavour, flavours
from ..suite.comparison import Comparison, Work
from ..suite.made_once import Shared
from .continuing import Prompts, ways
from .documents import prompts_of

NOT_COMPILED = "a compiled block would be compiled anew for every layer's part of the cache"


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine: few prompts, and as many as a rollout has."""
    peers = [(flavour, absent or (NOT_COMPILED if flavour.compiled else "")) for flavour, absent in flavours(device)]
    return [_comparison(batch, device, peers) for batch in ((1,) if short else (1, 8, 64))]


def _comparison(count: int, device: torch.device, peers: list[tuple[Flavour, str]]) -> Comparison:
    documents, dtype, what = prompts_of(count, device)
    prompts = Shared(partial(Prompts, documents, device, dtype))
    work = Work(flops=documents.flops(trains=False), items=sum(documents.lengths), unit="tokens")
    return Comparison(
        "modules", "prefill", f"{what}, batch {count}, {documents.lengths[0]:,} tokens each",
        str(dtype).removeprefix("torch."), ("prefill",), ways(prompts, peers, lambda begin, _: {"prefill": begin}),
        {"prefill": work}, seconds=5.0 if device.type == "cuda" else 1.0,
    )  # fmt: skip

"""Prompts continued token by token: passes over one token of each prompt, the head, the most likely token.

The prompts are run beforehand, and every call goes back to them. The token stays on the device: what `generate` does
beside that is measured by the rollouts.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from medmo_core.decoders.qwen3 import DecoderLayer
from medmo_core.generation.kv_cache import GROWTH
from medmo_recipes.training.monitoring.flops import UsefulFlops

from ..peers.transformers_model import Flavour, flavours
from ..suite.comparison import Comparison, Work
from ..suite.made_once import Shared
from .continuing import Begin, Continuing, Prompts, ways
from .documents import DocumentSizes, prompts_of, skeleton

NEW_TOKENS = {"cuda": GROWTH, "cpu": 16}
"""Of each prompt in a call, by kind of device. After `GROWTH` tokens our cache is laid out anew, so once in every call
on a GPU; on the CPU, where the model is tiny, four calls are as long, and none does it."""
ALIKE = "as the next: only the patch embedding differs, which decoding does not call"
GIVEN = 4
"""Tokens after which the logits are compared."""


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine: few prompts, and as many as a rollout has."""
    peers = [(_for_decoding(flavour), absent) for flavour, absent in flavours(device)]
    if peers[0][0].attention == peers[1][0].attention:
        peers[0] = (peers[0][0], peers[0][1] or ALIKE)
    return [_comparison(count, device, peers) for count in ((1,) if short else (1, 8, 64))]


def _for_decoding(flavour: Flavour) -> Flavour:
    """Give the compiled flavour the static cache that `generate` compiles for, which needs a mask."""
    if not flavour.compiled:
        return flavour
    return replace(flavour, name="transformers, static cache, compiled", attention="sdpa")


def _comparison(count: int, device: torch.device, peers: list[tuple[Flavour, str]]) -> Comparison:
    documents, dtype, what = prompts_of(count, device)
    prompts, new = Shared(partial(Prompts, documents, device, dtype)), NEW_TOKENS[device.type]
    return Comparison(
        "modules", "decode", f"{what}, batch {count}, {documents.lengths[0]:,} tokens before",
        str(dtype).removeprefix("torch."), ("decode",),
        ways(prompts, peers, partial(_calls, new), given=GIVEN, room=new),
        {"decode": _work(documents, new, dtype)}, seconds=6.0 if device.type == "cuda" else 1.0,
        apart=device.type == "cuda" and count > 8,  # two caches of 20 GB each for every way
    )  # fmt: skip


def _calls(new: int, begin: Begin, prompts: Continuing) -> dict[str, Callable[[], object]]:
    @torch.no_grad()
    def decode() -> None:
        prompts.rewind()
        token = prompts.logits.argmax(-1)
        for _ in range(new):
            token = prompts.advance(token).argmax(-1)

    return {"decode": decode}


def _work(documents: DocumentSizes, new: int, dtype: torch.dtype) -> Work:
    """Count what a call reads (weights, keys and values) and multiplies."""
    model, text = skeleton(documents.preset).requires_grad_(False), documents.config.text
    rows = len(documents.texts) * new
    seen = documents.lengths[0] + (new + 1) / 2  # by a new token, on average
    useful, layers = UsefulFlops(model), [m for m in model.decoder.layers if isinstance(m, DecoderLayer)]
    weights = sum(p.numel() for layer in layers for p in layer.parameters()) + model.head_weight.numel()
    cached = rows * seen * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    flops = rows * (useful.per_token + useful.per_row + seen * useful.per_pair)
    return Work(dtype.itemsize * (new * weights + cached), flops, rows, "tokens")

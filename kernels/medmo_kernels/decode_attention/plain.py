"""Decode attention in torch ops: batched dense products, each prompt read once for all its rows; serves the CPU."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import Call


def as_far_as_filled(call: Call) -> Call:
    """Cut caches behind the longest of their rows, so that columns with nothing in them cost nothing.

    What is left is what a caller could have passed: the results are equal bit for bit.
    """
    key, value, lengths = _filled(call.key_cache, call.value_cache, call.lengths)
    call = call._replace(key_cache=key, value_cache=value, lengths=lengths)
    if call.prompt_key is None or call.prompt_value is None:
        return call
    key, value, lengths = _filled(call.prompt_key, call.prompt_value, call.prompt_lengths)
    return call._replace(prompt_key=key, prompt_value=value, prompt_lengths=lengths)


def _filled(key: Tensor, value: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return a cache as far as its longest row reaches, and lengths unless all rows reach so far."""
    if lengths is None:
        return key, value, None
    stops = lengths.tolist()
    longest = min(max(stops, default=0), key.shape[2])
    is_full = longest > 0 and min(stops) >= longest
    longest = max(longest, 0)
    return key[:, :, :longest], value[:, :, :longest], None if is_full else lengths


def to_own(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None, left_pad: Tensor | None, scale: float
) -> Tensor:
    """Attend to a plain cache by one call; the heads that share a key head become its queries."""
    grouped = query.unflatten(1, (key.shape[1], -1))
    visible = _visible(left_pad, lengths, key.shape[2])
    return F.scaled_dot_product_attention(grouped, key, value, attn_mask=visible, scale=scale).flatten(1, 2)


def to_prompts_and_own(call: Call, scale: float) -> Tensor:
    """Attend to prompts, the rows of each as one batch of queries, and to the rows' own tokens: one softmax over both.

    Rows are laid out as (n prompts, r places); places that no row fills attend to zeros and are thrown away.
    """
    query, key, value, lengths, left_pad, prompt_key, prompt_value, prompt_lengths, prompt_of = call
    assert prompt_key is not None and prompt_value is not None and prompt_of is not None
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows, num_heads, head_dim = query.shape
    num_prompts, num_kv_heads, prompt_columns, _ = prompt_key.shape
    columns, group = key.shape[2], num_heads // num_kv_heads
    places, place = _places(tuple(prompt_of.tolist()), num_prompts)

    def by_prompt(x: Tensor) -> Tensor:
        """Turn (B, K, G, ...) into (n, K, r * G, ...)."""
        if place is not None:
            x = x.new_zeros(num_prompts * places, *x.shape[1:]).index_copy_(0, place, x)
        return x.view(num_prompts, places, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def by_row(x: Tensor) -> Tensor:
        """Turn (n, K, r * G, ...) into (B, K, G, ...)."""
        x = x.unflatten(2, (places, group)).transpose(1, 2).flatten(0, 1)
        return x if place is None else x[place]

    q_BKGD = (query.to(wide) * scale).view(rows, num_kv_heads, group, head_dim)
    own = q_BKGD @ key.to(wide).transpose(2, 3)
    if (visible := _visible(left_pad, lengths, columns)) is not None:
        own = own.masked_fill_(~visible, float("-inf"))
    shared = by_prompt(q_BKGD) @ prompt_key.to(wide).transpose(2, 3)
    if (visible := _visible(None, prompt_lengths, prompt_columns)) is not None:
        shared += query.new_zeros(visible.shape, dtype=wide).masked_fill_(~visible, float("-inf"))
    weights = torch.cat([shared, by_prompt(own)], dim=-1).softmax(dim=-1)
    out = by_row(weights[..., :prompt_columns] @ prompt_value.to(wide))
    out = out + by_row(weights[..., prompt_columns:]) @ value.to(wide)
    return out.reshape(rows, num_heads, head_dim).to(query.dtype)


@lru_cache(maxsize=64)
def _places(prompt_of: tuple[int, ...], num_prompts: int) -> tuple[int, Tensor | None]:
    """Return how many rows the fullest prompt has, and each row's place; None where rows fill all places in order."""
    filled = [0] * num_prompts
    within = []
    for prompt in prompt_of:
        within.append(filled[prompt])
        filled[prompt] += 1
    most = max(filled, default=0)
    place = [prompt * most + index for prompt, index in zip(prompt_of, within, strict=True)]
    return most, None if place == list(range(num_prompts * most)) else torch.tensor(place)


def _visible(first: Tensor | None, stop: Tensor | None, columns: int) -> Tensor | None:
    """Say which columns hold tokens, (rows, 1, 1, columns); None: all."""
    if first is None and stop is None:
        return None
    column = _columns(columns)
    after = None if first is None else column >= first.view(-1, 1, 1, 1)
    before = None if stop is None else column < stop.view(-1, 1, 1, 1)
    if after is None or before is None:
        return before if after is None else after
    return after & before


@lru_cache(maxsize=8)
def _columns(count: int) -> Tensor:
    """Return the numbers of the columns; all layers of a step ask for the same."""
    return torch.arange(count, dtype=torch.int32)

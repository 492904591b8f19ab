"""The definition of decode attention: every row's prompt is copied before its own tokens, then one dense softmax."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """Tensors of a call; see `decode_attention`."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    lengths: Tensor | None
    left_pad: Tensor | None
    prompt_key: Tensor | None
    prompt_value: Tensor | None
    prompt_lengths: Tensor | None
    prompt_of: Tensor | None


def decode_attention_reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    lengths: Tensor | None = None,
    *,
    left_pad: Tensor | None = None,
    prompt_key: Tensor | None = None,
    prompt_value: Tensor | None = None,
    prompt_lengths: Tensor | None = None,
    prompt_of: Tensor | None = None,
    scale: float | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """Attend from one token of each row to the row's prompt and its own tokens; see `decode_attention`.

    Shapes: B rows, H query heads, K key/value heads, D head width, S columns, n prompts of at most P tokens.
    Numerics: scores, softmax and sums in fp32 (float64 for float64), one cast at the end. A row without tokens is 0.
        What lies outside a row's tokens is never read, be it NaN.

    Args:
        query: (B, H, D).
        key_cache: (B, K, S, D).
        value_cache: (B, K, S, D).
        lengths: (B,) int32; None: S.
        left_pad: (B,) int32; None: 0.
        prompt_key: (n, K, P, D).
        prompt_value: (n, K, P, D).
        prompt_lengths: (n,) int32; None: P.
        prompt_of: (B,) int32.
        scale: factor on the scores; default D ** -0.5.
        num_splits: accepted for the signature; nothing is split here.

    Returns:
        (B, H, D) in the dtype of `query`.
    """
    del num_splits
    _, _, columns, head_dim = key_cache.shape
    visible = _within(left_pad, lengths, columns, query)
    keys, values = key_cache, value_cache
    if prompt_key is not None and prompt_value is not None and prompt_of is not None:
        num_prompts = prompt_key.shape[0]
        owner = prompt_of.long().clamp(0, num_prompts - 1)
        of_prompt = None if prompt_lengths is None else prompt_lengths[owner]
        known = (prompt_of >= 0) & (prompt_of < num_prompts)  # only on CUDA is it not checked before
        in_prompt = _within(None, of_prompt, prompt_key.shape[2], query) & known[:, None]
        visible = torch.cat([in_prompt, visible], dim=1)
        keys, values = torch.cat([prompt_key[owner], keys], dim=2), torch.cat([prompt_value[owner], values], dim=2)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    seen = visible[:, None, :, None]
    k_BKSD, v_BKSD = (x.to(wide).masked_fill(~seen, 0.0) for x in (keys, values))  # a weight of 0 does not stop NaN
    q_BKGD = query.to(wide).unflatten(1, (key_cache.shape[1], -1))
    scores = q_BKGD @ k_BKSD.transpose(2, 3) * (head_dim**-0.5 if scale is None else scale)
    weights = scores.masked_fill(~visible[:, None, None], float("-inf")).softmax(dim=-1)
    weights = weights.masked_fill(~visible.any(1)[:, None, None, None], 0.0)
    return (weights @ v_BKSD).flatten(1, 2).to(query.dtype)


def _within(first: Tensor | None, stop: Tensor | None, columns: int, query: Tensor) -> Tensor:
    """Say which of a row's columns hold its tokens: (B, columns)."""
    column = torch.arange(columns, device=query.device)
    inside = torch.ones(query.shape[0], columns, dtype=torch.bool, device=query.device)
    if first is not None:
        inside = inside & (column >= first[:, None])
    return inside if stop is None else inside & (column < stop[:, None])

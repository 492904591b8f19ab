"""The definition of packed attention: every document attends to itself only, written with one dense mask."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_reference(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool, scale: float | None = None
) -> Tensor:
    """Attend within each packed document, by a dense (T, T) mask.

    Shapes: T tokens, H query heads, K key/value heads (H a multiple of K), D head width, n documents.
    Numerics: scores, softmax and sums in fp32 (float64 for float64), one cast at the end.

    Args:
        query: (T, H, D).
        key: (T, K, D); query head h reads key/value head h // (H // K).
        value: (T, K, D).
        cu_seqlens: (n + 1,) int32 boundaries of the documents.
        causal: a token sees itself and the tokens before it.
        scale: factor on the scores; default D ** -0.5.

    Returns:
        (T, H, D) in the dtype of `query`.
    """
    total, num_heads, head_dim = query.shape
    groups = num_heads // key.shape[1]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    q_HTD = query.to(wide).transpose(0, 1)
    k_HTD = key.to(wide).repeat_interleave(groups, dim=1).transpose(0, 1)
    v_HTD = value.to(wide).repeat_interleave(groups, dim=1).transpose(0, 1)
    document = torch.bucketize(torch.arange(total, device=query.device), cu_seqlens[1:].long(), right=True)
    visible = document[:, None] == document[None, :]
    if causal:
        visible = visible.tril()
    scores = q_HTD @ k_HTD.transpose(1, 2) * (head_dim**-0.5 if scale is None else scale)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return (weights @ v_HTD).transpose(0, 1).to(query.dtype)

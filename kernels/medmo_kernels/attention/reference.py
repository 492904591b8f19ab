"""The definition of packed attention: which token sees which, written as one dense mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Arguments of the registered op beside query, key and value; see `attention`.

    Attributes:
        cu_seqlens: (s + 1,) int32 boundaries of the segments.
        prompt_of: (s,) int32 prompt of each segment, -1 for none; None: no segment has one.
        cos: (T, D / 2) cosines of the rotary positions; None: no rotation.
        sin: (T, D / 2) sines.
        causal: whether a token sees only itself and the tokens before it.
        scale: factor on the scores.
    """

    cu_seqlens: Tensor
    prompt_of: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    causal: bool
    scale: float

    @property
    def num_segments(self) -> int:
        """Return s."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def is_rotary(self) -> bool:
        """Say whether queries and keys are turned."""
        return self.cos is not None


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    causal: bool,
    scale: float | None = None,
    *,
    prompt_of: Tensor | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """Attend within each packed segment and to its prompt, by a dense (T, T) mask; see `attention`.

    Shapes: T tokens, H query heads, K key/value heads (H a multiple of K), D head width, s segments.
    Numerics: rotation, scores, softmax and sums in fp32 (float64 for float64), one cast at the end.

    Args:
        query: (T, H, D).
        key: (T, K, D); query head h reads key/value head h // (H // K).
        value: (T, K, D).
        cu_seqlens: (s + 1,) int32 boundaries of the segments.
        causal: whether a token sees only itself and the tokens before it.
        scale: factor on the scores; default D ** -0.5.
        prompt_of: (s,) the segment that segment j sees whole besides its own tokens; -1: none.
        rope: (cos, sin), each (T, D / 2): queries and keys are turned by them first.
        max_seqlen: not needed here.

    Returns:
        (T, H, D) in the dtype of `query`.
    """
    cos, sin = rope if rope is not None else (None, None)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return dense_attention(query, key, value, visible_pairs(query, cu_seqlens, causal, prompt_of), factor, cos, sin)[0]


def visible_pairs(query: Tensor, cu_seqlens: Tensor, causal: bool, prompt_of: Tensor | None) -> Tensor:
    """Return the (T, T) mask: row i is true where token i sees token j."""
    token = torch.arange(query.shape[0], device=query.device)
    bounds = cu_seqlens.to(query.device, torch.int64)
    segment = torch.bucketize(token, bounds[1:], right=True)
    visible = segment[:, None] == segment[None, :]
    if causal:
        visible = visible.tril()
    if prompt_of is not None and prompt_of.numel():
        visible = visible | (prompt_of.to(query.device, torch.int64)[segment][:, None] == segment[None, :])
    return visible


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float, cos: Tensor | None, sin: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the (T, H, D) result and the (H, T) natural logarithm of each row's sum of exponentials."""
    q_HTD, k_HTD, v_HTD = _by_head(query, key, value, cos, sin)
    scores = (q_HTD @ k_HTD.transpose(1, 2) * scale).masked_fill(~visible, float("-inf"))
    out = scores.softmax(dim=-1) @ v_HTD
    return out.transpose(0, 1).to(query.dtype).contiguous(), scores.logsumexp(dim=-1)


def dense_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    scale: float,
    cos: Tensor | None,
    sin: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, each in its tensor's dtype."""
    q_HTD, k_HTD, v_HTD = _by_head(query, key, value, cos, sin)
    scores = (q_HTD @ k_HTD.transpose(1, 2) * scale).masked_fill(~visible, float("-inf"))
    weights = scores.softmax(dim=-1)
    g_HTD = grad.to(q_HTD.dtype).transpose(0, 1)
    grad_weights = g_HTD @ v_HTD.transpose(1, 2)
    mean = (weights * grad_weights).sum(dim=-1, keepdim=True)
    grad_scores = weights * (grad_weights - mean) * scale
    num_kv_heads = key.shape[1]

    def summed(x_HTD: Tensor) -> Tensor:
        return x_HTD.unflatten(0, (num_kv_heads, -1)).sum(1)

    grad_query = (grad_scores @ k_HTD).transpose(0, 1)
    grad_key = summed(grad_scores.transpose(1, 2) @ q_HTD).transpose(0, 1)
    if cos is not None and sin is not None:
        grad_query, grad_key = turned(grad_query, cos, -sin), turned(grad_key, cos, -sin)
    grad_value = summed(weights.transpose(1, 2) @ g_HTD).transpose(0, 1)
    return (
        grad_query.to(query.dtype).contiguous(),
        grad_key.to(key.dtype).contiguous(),
        grad_value.to(value.dtype).contiguous(),
    )


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + D / 2]) of (T, H, D) heads by each token's angles, in the dtype of `x`."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _by_head(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor | None, sin: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Widen, rotate, and give every query head its own copy of the keys and values: three times (H, T, D)."""
    groups = query.shape[1] // key.shape[1]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    q, k, v = (x.to(wide) for x in (query, key, value))
    if cos is not None and sin is not None:
        q, k = turned(q, cos, sin), turned(k, cos, sin)
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    return q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)

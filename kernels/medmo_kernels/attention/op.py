"""Packed attention on the device at hand.

Documents are grouped so that a few dense calls of `scaled_dot_product_attention` serve all of them: groups of equal
length need nothing, causal groups of nearly equal length are padded on the right, where the causal mask already hides
the padding from every real token.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PADDING_RATIO = 0.25
"""A padded group may spend at most this share of its rows on padding."""


def attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool, scale: float | None = None
) -> Tensor:
    """Attend within each packed document.

    Shapes: T tokens, H query heads, K key/value heads (H a multiple of K), D head width, n documents.

    Args:
        query: (T, H, D).
        key: (T, K, D); query head h reads key/value head h // (H // K).
        value: (T, K, D).
        cu_seqlens: (n + 1,) int32 boundaries of the documents: 0, ..., T.
        causal: a token sees itself and the tokens before it.
        scale: factor on the scores; default D ** -0.5.

    Returns:
        (T, H, D) in the dtype of `query`.

    Raises:
        ValueError: the head counts do not divide or the boundaries do not end at T.
    """
    total, num_heads, head_dim = query.shape
    if num_heads % key.shape[1]:
        raise ValueError(f"{num_heads} query heads are not a multiple of {key.shape[1]} key/value heads")
    boundaries = tuple(cu_seqlens.tolist())
    if boundaries[-1] != total:
        raise ValueError(f"cu_seqlens ends at {boundaries[-1]}, the batch has {total} tokens")
    factor = head_dim**-0.5 if scale is None else scale
    groups = _plan(boundaries, causal, query.device)
    if len(groups) == 1 and groups[0].rows is None:
        return _dense(query, key, value, groups[0].num_documents, causal, factor)
    pieces, order = [], []
    for group in groups:
        rows = group.rows
        assert rows is not None
        out = _dense(query[rows], key[rows], value[rows], group.num_documents, causal, factor)
        pieces.append(out if group.real is None else out[group.real])
        order.append(rows if group.real is None else rows[group.real])
    if len(pieces) == 1:
        return torch.zeros_like(query).index_copy(0, order[0], pieces[0])
    return torch.zeros_like(query).index_copy(0, torch.cat(order), torch.cat(pieces))


def _dense(query: Tensor, key: Tensor, value: Tensor, num_documents: int, causal: bool, scale: float) -> Tensor:
    """Attend in `num_documents` documents of equal length, laid end to end."""
    q, k, v = (x.unflatten(0, (num_documents, -1)).transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(0, 1)


class _Group:
    """Documents that one dense call serves.

    Attributes:
        num_documents: documents in the group.
        rows: token index of every (padded) row, or None when the group is the whole batch in order.
        real: index of the rows that are not padding, or None when none is padded.
    """

    def __init__(self, num_documents: int, rows: Tensor | None, real: Tensor | None) -> None:
        self.num_documents = num_documents
        self.rows = rows
        self.real = real


@lru_cache(maxsize=64)
def _plan(boundaries: tuple[int, ...], causal: bool, device: torch.device) -> tuple[_Group, ...]:
    """Group the documents; the same plan serves every layer of a step."""
    spans = [(stop - start, start) for start, stop in zip(boundaries, boundaries[1:], strict=False) if stop > start]
    if len({length for length, _ in spans}) == 1:
        return (_Group(len(spans), None, None),)
    buckets: list[list[tuple[int, int]]] = []
    filled = 0
    for length, start in sorted(spans, reverse=True):
        longest = buckets[-1][0][0] if buckets else 0
        rows = longest * (len(buckets[-1]) + 1) if buckets else 0
        fits = length == longest or (causal and filled + length >= rows * (1 - MAX_PADDING_RATIO))
        if buckets and fits:
            buckets[-1].append((length, start))
            filled += length
        else:
            buckets.append([(length, start)])
            filled = length
    return tuple(_group(bucket, device) for bucket in buckets)


def _group(bucket: list[tuple[int, int]], device: torch.device) -> _Group:
    longest = bucket[0][0]
    lengths = torch.tensor([length for length, _ in bucket])
    starts = torch.tensor([start for _, start in bucket])
    offset = torch.arange(longest)
    # Padding rows repeat the last real token: a value that exists, whose result is thrown away.
    rows = starts[:, None] + torch.minimum(offset[None, :], lengths[:, None] - 1)
    real = (offset[None, :] < lengths[:, None]).flatten().nonzero().squeeze(1)
    padded = real.numel() < rows.numel()
    return _Group(len(bucket), rows.flatten().to(device), real.to(device) if padded else None)

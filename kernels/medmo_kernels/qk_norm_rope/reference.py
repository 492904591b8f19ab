"""The definitions of qk_norm_rope and of its form for a cache."""

from typing import NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """Arguments of a call, checked; see `qk_norm_rope`."""

    query: Tensor
    key: Tensor
    query_weight: Tensor
    key_weight: Tensor
    cos: Tensor
    sin: Tensor
    eps: float


class Places(NamedTuple):
    """Tensors of a call that writes into a cache, besides those of `Call`; see `qk_norm_rope_cache_`."""

    value: Tensor
    key_cache: Tensor
    value_cache: Tensor
    columns: Tensor


def qk_norm_rope_reference(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Normalise every head, scale it and rotate it by its token's angles; see `qk_norm_rope`."""
    return _norm_rope(query, query_weight, cos, sin, eps), _norm_rope(key, key_weight, cos, sin, eps)


def qk_norm_rope_cache_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    columns: Tensor,
    *,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return new queries and new caches; `qk_norm_rope_cache_` writes them into the memory of the old ones."""
    query, key = qk_norm_rope_reference(query, key, query_weight, key_weight, cos, sin, eps=eps)
    column = torch.arange(key_cache.shape[2], device=columns.device)
    here_B1S1 = (column == columns[:, None])[:, None, :, None]
    keys = torch.where(here_B1S1, key.unsqueeze(2), key_cache)
    return query, keys, torch.where(here_B1S1, value.unsqueeze(2), value_cache)


def _norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x_THD, cos_T1C, sin_T1C = x.to(wide), cos.to(wide).unsqueeze(1), sin.to(wide).unsqueeze(1)
    y_THD = x_THD * (x_THD.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.to(wide)
    first, second = y_THD.chunk(2, dim=-1)
    rotated = torch.cat([first * cos_T1C - second * sin_T1C, second * cos_T1C + first * sin_T1C], dim=-1)
    return rotated.to(x.dtype)

"""The definition of qk_norm_rope."""

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


def _norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x_THD, cos_T1C, sin_T1C = x.to(wide), cos.to(wide).unsqueeze(1), sin.to(wide).unsqueeze(1)
    y_THD = x_THD * (x_THD.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.to(wide)
    first, second = y_THD.chunk(2, dim=-1)
    rotated = torch.cat([first * cos_T1C - second * sin_T1C, second * cos_T1C + first * sin_T1C], dim=-1)
    return rotated.to(x.dtype)

"""The definition of the projector: normalise, merge, linear, erf-GELU, linear, for each merger of a tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ProjectorWeights(NamedTuple):
    """The parameters of one merger. Widths: C a patch, D = merge_size ** 2 * C, H hidden, O out.

    Attributes:
        norm_weight: (C,) to normalise each patch before merging (main path), (D,) the merged vector (deepstack).
        norm_bias: (C,) or (D,), of the shape of `norm_weight`.
        fc1_weight: (H, D).
        fc1_bias: (H,).
        fc2_weight: (O, H).
        fc2_bias: (O,).
    """

    norm_weight: Tensor
    norm_bias: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor


def projector_reference(
    features: Sequence[Tensor], weights: Sequence[ProjectorWeights], *, merge_size: int = 2, eps: float = 1e-6
) -> list[Tensor]:
    """Turn patches into decoder tokens, once per merger.

    Shapes: G mergers, N patches in merge order, C their width, M = N / merge_size ** 2 tokens, O the decoder's width.
    Numerics: everything in fp32 (float64 for float64), one cast at the end; GELU is the erf form.

    Args:
        features: G times (N, C); the `merge_size ** 2` patches of a token follow one another.
        weights: parameters of each merger; the width of `norm_weight` says whether to normalise before or after
            merging.
        merge_size: patches along one side of a token.
        eps: number added to the variance.

    Returns:
        G times (M, O) in the dtype of the features.
    """
    return [_merge(x, parameters, merge_size, eps) for x, parameters in zip(features, weights, strict=True)]


def _merge(features: Tensor, weights: ProjectorWeights, merge_size: int, eps: float) -> Tensor:
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    x, *parameters = (t.to(wide) for t in (features, *weights))
    w = ProjectorWeights(*parameters)
    rows = x.reshape(-1, w.norm_weight.shape[0])
    centred = rows - rows.mean(-1, keepdim=True)
    normal = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * w.norm_weight + w.norm_bias
    hidden = F.linear(normal.reshape(-1, features.shape[1] * merge_size**2), w.fc1_weight, w.fc1_bias)
    activated = 0.5 * hidden * (1 + torch.erf(hidden * 0.5**0.5))
    return F.linear(activated, w.fc2_weight, w.fc2_bias).to(features.dtype)

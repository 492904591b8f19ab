"""Join the features of several encoders on one grid of patches.

Shapes: N patches in one common order, D_i width of encoder i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def fuse_features(features: Sequence[Tensor], *, eps: float = 1e-6) -> Tensor:
    """Normalise each encoder's features and lay them side by side.

    Without the normalisation (mean 0, variance 1 per patch, no parameters) the encoder with the larger numbers would
    own the projector's own normalisation, which sees all of them at once.

    Args:
        features: (N, D_i) each, in one patch order.
        eps: small number added to the variance.

    Returns:
        (N, sum of D_i).

    Raises:
        ValueError: the encoders disagree on the number of patches.
    """
    counts = [len(tensor) for tensor in features]
    if len(set(counts)) != 1:
        raise ValueError(f"encoders give {counts} patches for the same images; they need one grid of visual tokens")
    return torch.cat([F.layer_norm(tensor, tensor.shape[-1:], eps=eps) for tensor in features], dim=-1)

"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backend import liger_rms_norm, uses_liger


class RMSNorm(nn.Module):
    """Norm that divides each vector by its root mean square and scales it.

    Shapes: (..., dim) -> (..., dim).
    Numerics: the mean of squares is accumulated in fp32 for 16-bit inputs. Liger, which serves CUDA tensors where it is
        installed, casts before it applies the weight, as the published code does; PyTorch after.
    State: `weight` (dim,).

    Args:
        dim: width of the last axis.
        eps: small number added to the mean of squares.
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of `x`."""
        if uses_liger(x):
            return liger_rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """Describe the module in one line."""
        return f"{self.weight.shape[0]}, eps={self.eps}"

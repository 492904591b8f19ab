"""The two feed-forward forms: plain with GELU (vision) and gated with SiLU (text)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backend import liger_silu_mul, uses_liger


class MLP(nn.Module):
    """Linear, GELU, linear.

    Shapes: (..., embed_dim) -> (..., embed_dim).
    State: `linear_fc1.{weight,bias}`, `linear_fc2.{weight,bias}`.

    Args:
        embed_dim: width in and out.
        hidden_dim: width in between.
        approximate: "tanh" or "none" (erf), the form of GELU.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        approximate: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.approximate = approximate
        self.linear_fc1 = nn.Linear(embed_dim, hidden_dim, device=device, dtype=dtype)
        self.linear_fc2 = nn.Linear(hidden_dim, embed_dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last axis of `x`."""
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate=self.approximate))


class SwiGLU(nn.Module):
    """Product of a SiLU-gated projection and a plain one, projected back.

    Shapes: (..., embed_dim) -> (..., embed_dim).
    Numerics: on CUDA tensors Liger, where it is installed, keeps the product's factors instead of three intermediates
        and overwrites them in the backward pass: one backward pass per forward pass.
    State: `gate_proj.weight`, `up_proj.weight`, `down_proj.weight`.

    Args:
        embed_dim: width in and out.
        hidden_dim: width in between.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(embed_dim, hidden_dim, bias=False, device=device, dtype=dtype)
        self.up_proj = nn.Linear(embed_dim, hidden_dim, bias=False, device=device, dtype=dtype)
        self.down_proj = nn.Linear(hidden_dim, embed_dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last axis of `x`."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(liger_silu_mul(gate, up) if uses_liger(gate) else F.silu(gate) * up)

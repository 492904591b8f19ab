"""Rotary positions as a differentiable torch op, for back ends that do not rotate themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotated(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn every (T, H, D) head by its token's angles; 16-bit inputs are turned in fp32 and cast back once."""
    cos, sin = (part.unsqueeze(1).to(torch.promote_types(x.dtype, part.dtype)) for part in rope)
    return _Rotate.apply(x.to(cos.dtype), cos, sin).to(x.dtype)


class _Rotate(torch.autograd.Function):
    """Rotation of the two halves of each head; its gradient is turned back. Half the traffic of the plain formula."""

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _turn(x, cos, sin)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Rotate.apply(grads[0], cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    first, second = x.chunk(2, dim=-1)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1.0)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)
    return out

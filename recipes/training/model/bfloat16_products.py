"""Products in bfloat16 in fp32 linear layers, on processors that have units for them.

Factors are rounded to 8 significant bits and the products summed in fp32; weights, activations and gradients between
layers stay fp32. Layers keep their names and weights, so checkpoints and export do not notice.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Bfloat16Linear(nn.Linear):
    """Linear layer whose products are made in bfloat16, forward and backward.

    Shapes: (..., in_features) -> (..., out_features), of the input's dtype.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Transform the last axis of `input`."""
        return _Linear.apply(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow_x, narrow_weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(narrow_x, narrow_weight)
        out = F.linear(narrow_x, narrow_weight).to(x.dtype)
        return out if bias is None else out.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        narrow_x, narrow_weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        narrow = grad.bfloat16()
        return (
            (narrow @ narrow_weight).to(grad.dtype) if of_input else None,
            (narrow.flatten(0, -2).mT @ narrow_x.flatten(0, -2)).to(grad.dtype) if of_weight else None,
            grad.flatten(0, -2).sum(0) if of_bias else None,
        )


def multiply_in_bfloat16(blocks: Iterable[nn.Module], device: torch.device) -> int:
    """Make the fp32 linear layers of blocks multiply in bfloat16, in place, where the processor has units for it.

    Args:
        blocks: modules whose layers these are.
        device: device that they will run on.

    Returns:
        The number of layers; 0 where the processor has no such units.
    """
    if not multiplies_bfloat16(device.type):
        return 0
    modules = (module for block in blocks for module in block.modules())
    layers = [m for m in modules if type(m) is nn.Linear and m.weight.dtype == torch.float32]
    for layer in layers:
        layer.__class__ = Bfloat16Linear
    return len(layers)


@cache
def multiplies_bfloat16(device: str) -> bool:
    """Return whether a kind of device has units that multiply bfloat16, and so does it faster than fp32."""
    if device != "cpu":
        return device == "cuda"
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch 2.11 may lack it
    return any(known.get(units, False) for units in ("avx512_bf16", "amx_bf16"))

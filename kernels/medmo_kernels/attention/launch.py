"""Launchers of the attention kernels: grids, strides, and the order of the kernels."""

# pyright: reportCallIssue=false, reportArgumentType=false
# The options of a launch are no parameters of the kernel.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..fit import aligned, dense_fp32, strides_in_8
from ..grids import LOG2E
from ..placement import on_device_of_tensors
from ..tables import Tuned, tuned
from . import triton_kernel as kernels
from . import triton_kernel_backward as backward_kernels
from .reference import Packing

ROOM = "attention"


@on_device_of_tensors
def attention_forward(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """Launch the forward: (T, H, D), and the (H, T) log-sum-exp in fp32."""
    query, key, value = (aligned(x) for x in (query, key, value))
    num_tokens, num_heads, _ = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(num_heads, num_tokens, dtype=torch.float32, device=query.device)
    if not num_tokens:
        return out, lse
    packing = packing._replace(cos=dense_fp32(packing.cos), sin=dense_fp32(packing.sin))
    if packing.is_rotary:
        key = _turned(key, packing)
    grid, constants = _shared(query, key, packing)
    config = _tuned("forward", query, packing)
    kernels._forward[grid(config.blocks["BLOCK_M"], num_heads)](
        query, key, value, out, lse, *_places(packing), num_tokens, packing.num_segments,
        *strides_in_8(query, key, value), packing.scale * LOG2E, **constants, **config.blocks, **config.options,
    )  # fmt: skip
    return out, lse


@on_device_of_tensors
def attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, packing: Packing
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward: the gradients of query, key and value."""
    grad, query, key, value = (aligned(x) for x in (grad, query, key, value))
    num_tokens, num_heads, _ = query.shape
    by_query, by_key, by_value = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value))
    if not num_tokens:
        return by_query, by_key, by_value
    packing = packing._replace(cos=dense_fp32(packing.cos), sin=dense_fp32(packing.sin))
    if packing.is_rotary:
        query, key = _turned(query, packing), _turned(key, packing)
    mean = torch.empty_like(lse)
    grid, constants = _shared(query, key, packing)
    strides = strides_in_8(query, key, value, grad)
    rest = (*_places(packing), num_tokens, packing.num_segments, *strides, packing.scale * LOG2E)
    config = _tuned("backward_query", query, packing)
    backward_kernels._backward_query[grid(config.blocks["BLOCK_M"], num_heads)](
        query, key, value, out, grad, lse, mean, by_query, *rest, **constants, **config.blocks, **config.options
    )
    config = _tuned("backward_key", query, packing)
    backward_kernels._backward_key[grid(config.blocks["BLOCK_N"], key.shape[1])](
        query, key, value, grad, lse, mean, by_key, by_value, *rest, **constants, **config.blocks, **config.options
    )
    return by_query, by_key, by_value


def _tuned(kernel: str, query: Tensor, packing: Packing) -> Tuned:
    """Look up a launch; `vision` stands for whole segments that are turned, whose loops need the fewest registers."""
    vision = packing.is_rotary and not packing.causal
    return tuned(ROOM, kernel, query, head_dim=query.shape[-1], vision=vision)


def _places(packing: Packing) -> tuple[Tensor | None, ...]:
    return packing.cu_seqlens, packing.prompt_of, packing.cos, packing.sin


def _shared(query: Tensor, key: Tensor, packing: Packing) -> tuple[Any, dict[str, Any]]:
    """Return the grid as a function of rows per tile and of heads, and the constants that all kernels but one take."""

    def grid(block: int, num_heads: int) -> tuple[int, int]:
        return query.shape[0] // block + packing.num_segments, num_heads

    flags = {"CAUSAL": packing.causal, "PREFIX": packing.prompt_of is not None, "ROTARY": packing.is_rotary}
    return grid, {"GROUP": query.shape[1] // key.shape[1], **_columns(query.shape[2]), **flags}


def _columns(head_dim: int) -> dict[str, int]:
    """Split the columns of a head into a power of two and the rest."""
    return {"D": head_dim, "LO": 128 if head_dim == 128 else 64, "HI": 0 if head_dim in (64, 128) else 16}


def _turned(x: Tensor, packing: Packing) -> Tensor:
    """Return a contiguous (T, H, D) copy, turned, as interleaved pairs."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    config = tuned(ROOM, "rotate", x)
    grid = (-(-x.shape[0] // config.blocks["BLOCK_ROWS"]), x.shape[1])
    kernels._rotate[grid](
        x, out, packing.cos, packing.sin, x.shape[0], *strides_in_8(x), **_columns(x.shape[2]),
        **config.blocks, **config.options,
    )  # fmt: skip
    return out

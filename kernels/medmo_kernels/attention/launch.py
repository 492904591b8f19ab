"""Launches of the attention kernels: what the shipped table says, grids, strides, and the order of the kernels."""

# pyright: reportCallIssue=false, reportArgumentType=false
# The options of a launch are no parameters of the kernel.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import runtime
from . import triton_kernel as kernels

LOG2E = 1.4426950408889634
BLOCKS = ("block_m", "block_n", "block_rows")


def _config(kernel: str, x: Tensor) -> dict[str, Any]:
    """Return blocks, warps and stages of a kernel. All head widths share the rows of fp32, which nobody tunes."""
    key = {"bits": 32} if x.dtype == torch.float32 else {"head_dim": x.shape[-1], "bits": 16}
    if kernel == "rotate":
        key = {}
    row = runtime.table_row("attention", runtime.capability(x.device), kernel=kernel, **key)
    blocks = {name.upper(): row[name] for name in BLOCKS if name in row}
    return {**blocks, "num_warps": row["num_warps"], "num_stages": row["num_stages"], "enable_fp_fusion": True}


def _columns(head_dim: int) -> dict[str, Any]:
    """Split the columns of a head into a power of two and the rest."""
    return {"D": head_dim, "LO": 128 if head_dim == 128 else 64, "HI": 0 if head_dim in (64, 128) else 16}


def _aligned(x: Tensor) -> Tensor:
    """Return the tensor, or a copy where its rows are not 8 elements apart or a multiple of that."""
    fits = x.stride(2) == 1 and x.stride(0) % 8 == 0 and x.stride(1) % 8 == 0
    return x if fits else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    """Return row and head strides in units of 8 elements, so that the compiler knows them to be aligned."""
    return [stride // 8 for x in tensors for stride in x.stride()[:2]]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return a contiguous (T, H, D) copy, turned, as interleaved pairs."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    config = _config("rotate", x)
    grid = (-(-x.shape[0] // config["BLOCK_ROWS"]), x.shape[1])
    kernels._rotate[grid](x, out, cos, sin, x.shape[0], *_strides(x), **_columns(x.shape[2]), **config)
    return out


def _tiles(num_tokens: int, num_segments: int, block: int) -> int:
    return num_tokens // block + num_segments


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    prompt_of: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return (T, H, D) and the (H, T) log-sum-exp, fp32; arguments as those of the registered op."""
    query, key, value = (_aligned(x) for x in (query, key, value))
    num_tokens, num_heads, _ = query.shape
    num_segments = cu_seqlens.shape[0] - 1
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(num_heads, num_tokens, dtype=torch.float32, device=query.device)
    if not num_tokens:
        return out, lse
    if cos is not None and sin is not None:
        cos, sin = cos.float().contiguous(), sin.float().contiguous()
        key = _turned(key, cos, sin)
    config = _config("forward", query)
    kernels._forward[(_tiles(num_tokens, num_segments, config["BLOCK_M"]), num_heads)](
        query, key, value, out, lse, cu_seqlens, prompt_of, cos, sin, num_tokens, num_segments,
        *_strides(query, key, value), scale * LOG2E,
        GROUP=num_heads // key.shape[1], CAUSAL=causal, PREFIX=prompt_of is not None, ROTARY=cos is not None,
        **_columns(query.shape[2]), **config,
    )  # fmt: skip
    return out, lse


def attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    prompt_of: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value; arguments as those of the registered op."""
    grad, query, key, value = (_aligned(x) for x in (grad, query, key, value))
    num_tokens, num_heads, _ = query.shape
    num_kv_heads, num_segments = key.shape[1], cu_seqlens.shape[0] - 1
    grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value))
    if not num_tokens:
        return grads[0], grads[1], grads[2]
    if cos is not None and sin is not None:
        cos, sin = cos.float().contiguous(), sin.float().contiguous()
        query, key = _turned(query, cos, sin), _turned(key, cos, sin)
    mean = torch.empty_like(lse)
    flags = {"CAUSAL": causal, "PREFIX": prompt_of is not None, "ROTARY": cos is not None}
    shared = {"GROUP": num_heads // num_kv_heads, **_columns(query.shape[2]), **flags}
    counts = (num_tokens, num_segments, *_strides(query, key, value, grad), scale * LOG2E)
    packing = (cu_seqlens, prompt_of, cos, sin, *counts)
    config = _config("backward_query", query)
    kernels._backward_query[(_tiles(num_tokens, num_segments, config["BLOCK_M"]), num_heads)](
        query, key, value, out, grad, lse, mean, grads[0], *packing, **shared, **config
    )
    config = _config("backward_key", query)
    kernels._backward_key[(_tiles(num_tokens, num_segments, config["BLOCK_N"]), num_kv_heads)](
        query, key, value, grad, lse, mean, grads[1], grads[2], *packing, **shared, **config
    )
    return grads[0], grads[1], grads[2]

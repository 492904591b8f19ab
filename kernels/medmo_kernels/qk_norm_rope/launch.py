"""Launchers of qk_norm_rope: runs of tokens, blocks of heads, and the sum of the weights' gradients."""

# The options of a launch are no parameters of the kernel.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..fit import dense, dense_heads
from ..grids import cdiv, next_power_of_2
from ..placement import on_device_of_tensors
from ..tables import tuned
from . import triton_kernel as kernels
from .reference import Call, Places

ROOM = "qk_norm_rope"
MIN_BLOCK_HALF = 16


@on_device_of_tensors
def forward(call: Call, query_out: Tensor, key_out: Tensor) -> None:
    """Write the normalised and rotated heads into `query_out` and `key_out`, which may be the inputs themselves.

    Where their heads lie apart, the kernel writes to a copy, which is copied back.
    """
    num_tokens, num_heads, head_dim = call.query.shape
    if num_tokens == 0:
        return
    query, key, query_weight, key_weight, cos, sin, eps = _fitting(call)
    outs = [(out, dense_heads(out)) for out in (query_out, key_out)]
    query_to, key_to = (to for _, to in outs)
    blocks, options, launch = _tuned("forward", query)
    programs = cdiv(num_heads, blocks["BLOCK_HEADS"]) + cdiv(key.shape[1], blocks["BLOCK_HEADS"])
    run_tokens = cdiv(num_tokens, launch["max_runs"])
    kernels._forward_kernel[(cdiv(num_tokens, run_tokens) * programs,)](
        query, key, query_to, key_to, query_weight, key_weight, cos, sin,
        query.stride(0), key.stride(0), query_to.stride(0), key_to.stride(0), num_tokens, run_tokens, eps,
        NUM_HEADS=num_heads, NUM_KV_HEADS=key.shape[1], HALF=head_dim // 2, **blocks, **options,
    )  # fmt: skip
    for out, to in outs:
        if to is not out:
            out.copy_(to)


@on_device_of_tensors
def into_cache(call: Call, places: Places) -> None:
    """Turn queries in place, and put turned keys and values into their columns of the caches.

    Where the heads of queries lie apart, the kernel turns a copy, which is copied back. The last axis of the caches has
    stride 1.
    """
    num_tokens, num_heads, head_dim = call.query.shape
    if num_tokens == 0:
        return
    query, key, query_weight, key_weight, cos, sin, eps = _fitting(call)
    value, columns = dense_heads(places.value), dense(places.columns)
    key_cache, value_cache = places.key_cache, places.value_cache
    blocks, options, _ = _tuned("forward", query)
    programs = cdiv(num_heads, blocks["BLOCK_HEADS"]) + cdiv(key.shape[1], blocks["BLOCK_HEADS"])
    kernels._cache_kernel[(num_tokens * programs,)](
        query, key, value, query_weight, key_weight, cos, sin, key_cache, value_cache, columns, key_cache.shape[2], eps,
        query.stride(0), key.stride(0), value.stride(0), *key_cache.stride()[:3], *value_cache.stride()[:3],
        NUM_HEADS=num_heads, NUM_KV_HEADS=key.shape[1], HALF=head_dim // 2, **blocks, **options,
    )  # fmt: skip
    if query is not call.query:
        call.query.copy_(query)


@on_device_of_tensors
def backward(query_grad: Tensor, key_grad: Tensor, call: Call, weights: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys (contiguous) and, in fp32, of the two weights.

    Without `weights` the last two are empty.
    """
    query, key, query_weight, key_weight, cos, sin, eps = _fitting(call)
    query_grad, key_grad = dense_heads(query_grad), dense_heads(key_grad)
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[1]
    query_dx, key_dx = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key))
    blocks, options, launch = _tuned("backward", query)
    query_blocks = cdiv(num_heads, blocks["BLOCK_HEADS"])
    programs = query_blocks + cdiv(num_kv_heads, blocks["BLOCK_HEADS"])
    run_tokens = max(1, cdiv(num_tokens, launch["max_runs"]))
    runs = cdiv(num_tokens, run_tokens)
    shares = query.new_empty((runs, programs, head_dim) if weights else 0, dtype=torch.float32)
    if num_tokens:
        kernels._backward_kernel[(runs * programs,)](
            query_grad, key_grad, query, key, query_dx, key_dx,
            query_weight, key_weight, shares, cos, sin,
            query_grad.stride(0), key_grad.stride(0), query.stride(0), key.stride(0), num_tokens, run_tokens, eps,
            NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HALF=head_dim // 2, WEIGHTS=weights,
            **blocks, **options,
        )  # fmt: skip
    if not weights:
        return query_dx, key_dx, shares, shares.clone()
    return query_dx, key_dx, shares[:, :query_blocks].sum((0, 1)), shares[:, query_blocks:].sum((0, 1))


def _fitting(call: Call) -> Call:
    """Return tensors as the kernels read them: a token's heads one behind the other, weights and tables contiguous."""
    heads = (dense_heads(call.query), dense_heads(call.key))
    return Call(*heads, *(dense(x) for x in call[2:6]), call.eps)


def _tuned(kernel: str, x: Tensor) -> tuple[dict[str, Any], Any, Any]:
    """Return blocks, options and launch numbers for heads of this width."""
    block_half = max(MIN_BLOCK_HALF, next_power_of_2(x.shape[-1] // 2))
    found = tuned(ROOM, kernel, x, block_half=block_half)
    return {**found.blocks, "BLOCK_HALF": block_half}, found.options, found.launch

"""One pass over queries and keys: RMSNorm of each head, weight, rotation; and one pass back.

A third kernel serves decoding: queries are turned in place, keys on their way into a cache, and values go with them, to
a column that the device knows.

A program owns a run of tokens and one block of heads, of the queries or of the keys: [BLOCK_HEADS, BLOCK_HALF] tiles of
both halves of the heads. It reads the weight once, a token's angles once per block of heads (they are in cache for the
token's other blocks, whose programs are neighbours), and each element once. As compiled for sm_90 the lanes hand the
angles round through shared memory, two barriers a token, and move heads 16 bytes at a time, 8 where half a head is no
multiple of 16 bytes (width 72). The backward pass computes the reciprocal root mean square again: the row is in
registers anyway. Each of its programs adds up its own share of the weight gradient in registers; torch sums the shares,
so the result does not depend on who finishes first. A configuration allows `max_runs` runs: few tokens (decoding) make
runs of one, many make runs that are worth a program and its share.
A run of one has another binary, without the loop; all other numbers of tokens share one.

A token's heads lie one behind the other, so a head's place is known at compile time; tokens may lie apart.

Bytes: 4 per 16-bit element forward (read, write), 6 backward (read twice, write), and 4 D per token for the angles; no
matrix product, so memory is the floor. T = 14,400 tokens of the 4B and 8B decoders (32 + 8 heads of 128): 295 + 7 MB
forward, 442 + 7 MB backward, which an H200 (4.3 TB/s) moves in 70 and 105 us at best (floors, not measured).
"""

# pyright: reportCallIssue=false
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _forward_block(
    x_ptr, out_ptr, weight_ptr, cos_ptr, sin_ptr,
    x_token_stride, out_token_stride, out_head_stride, first_token, last_token, block, eps,
    NUM_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    heads = block * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    cols = tl.arange(0, BLOCK_HALF)
    in_half = cols < HALF
    mask = (heads < NUM_HEADS)[:, None] & in_half[None, :]  # [BLOCK_HEADS, BLOCK_HALF]
    tile = heads[:, None] * (2 * HALF) + cols[None, :]
    out_tile = heads[:, None] * out_head_stride + cols[None, :]
    w1 = tl.load(weight_ptr + cols, mask=in_half, other=0.0).to(tl.float32)[None, :]
    w2 = tl.load(weight_ptr + HALF + cols, mask=in_half, other=0.0).to(tl.float32)[None, :]
    for token in range(first_token, last_token):  # int64
        x_row = x_ptr + token * x_token_stride + tile
        x1 = tl.load(x_row, mask=mask, other=0.0).to(tl.float32)
        x2 = tl.load(x_row + HALF, mask=mask, other=0.0).to(tl.float32)
        cos = tl.load(cos_ptr + token * HALF + cols, mask=in_half, other=0.0)[None, :]
        sin = tl.load(sin_ptr + token * HALF + cols, mask=in_half, other=0.0)[None, :]
        mean_square = tl.sum(x1 * x1 + x2 * x2, axis=1) / (2 * HALF)
        rstd = tl.rsqrt(mean_square + eps)[:, None]
        y1 = x1 * rstd * w1
        y2 = x2 * rstd * w2
        out_row = out_ptr + token * out_token_stride + out_tile
        tl.store(out_row, (y1 * cos - y2 * sin).to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(out_row + HALF, (y2 * cos + y1 * sin).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["run_tokens"])
def _forward_kernel(
    query_ptr, key_ptr, query_out_ptr, key_out_ptr, query_weight_ptr, key_weight_ptr, cos_ptr, sin_ptr,
    query_token_stride, key_token_stride, query_out_token_stride, key_out_token_stride, num_tokens, run_tokens, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    QUERY_BLOCKS: tl.constexpr = (NUM_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    BLOCKS: tl.constexpr = QUERY_BLOCKS + (NUM_KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    block = tl.program_id(0) % BLOCKS
    first_token = (tl.program_id(0) // BLOCKS).to(tl.int64) * run_tokens
    last_token = tl.minimum(first_token + run_tokens, num_tokens)
    if block < QUERY_BLOCKS:
        _forward_block(
            query_ptr, query_out_ptr, query_weight_ptr, cos_ptr, sin_ptr,
            query_token_stride, query_out_token_stride, 2 * HALF, first_token, last_token, block, eps,
            NUM_HEADS, HALF, BLOCK_HEADS, BLOCK_HALF,
        )  # fmt: skip
    else:
        _forward_block(
            key_ptr, key_out_ptr, key_weight_ptr, cos_ptr, sin_ptr,
            key_token_stride, key_out_token_stride, 2 * HALF, first_token, last_token, block - QUERY_BLOCKS, eps,
            NUM_KV_HEADS, HALF, BLOCK_HEADS, BLOCK_HALF,
        )  # fmt: skip


@triton.jit
def _copy_block(
    x_ptr, out_ptr, out_head_stride, block,
    NUM_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    heads = block * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    cols = tl.arange(0, 2 * BLOCK_HALF)
    mask = (heads < NUM_HEADS)[:, None] & (cols < 2 * HALF)[None, :]
    x = tl.load(x_ptr + heads[:, None] * (2 * HALF) + cols[None, :], mask=mask, other=0.0)
    tl.store(out_ptr + heads[:, None] * out_head_stride + cols[None, :], x, mask=mask)


@triton.jit(do_not_specialize=["num_columns"])
def _cache_kernel(
    query_ptr, key_ptr, value_ptr, query_weight_ptr, key_weight_ptr, cos_ptr, sin_ptr,
    key_cache_ptr, value_cache_ptr, columns_ptr, num_columns, eps,
    query_token_stride, key_token_stride, value_token_stride,
    key_row_stride, key_head_stride, key_column_stride, value_row_stride, value_head_stride, value_column_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """Turn one block of a token's query heads in place, or put one block of its key and value heads into the cache."""
    QUERY_BLOCKS: tl.constexpr = (NUM_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    BLOCKS: tl.constexpr = QUERY_BLOCKS + (NUM_KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    block = tl.program_id(0) % BLOCKS
    token = (tl.program_id(0) // BLOCKS).to(tl.int64)
    if block < QUERY_BLOCKS:
        _forward_block(
            query_ptr, query_ptr, query_weight_ptr, cos_ptr, sin_ptr,
            query_token_stride, query_token_stride, 2 * HALF, token, token + 1, block, eps,
            NUM_HEADS, HALF, BLOCK_HEADS, BLOCK_HALF,
        )  # fmt: skip
    else:
        column = tl.load(columns_ptr + token).to(tl.int64)
        if (column >= 0) & (column < num_columns):
            _forward_block(
                key_ptr, key_cache_ptr + column * key_column_stride, key_weight_ptr, cos_ptr, sin_ptr,
                key_token_stride, key_row_stride, tl.cast(key_head_stride, tl.int64), token, token + 1,
                block - QUERY_BLOCKS, eps, NUM_KV_HEADS, HALF, BLOCK_HEADS, BLOCK_HALF,
            )  # fmt: skip
            _copy_block(
                value_ptr + token * value_token_stride,
                value_cache_ptr + token * value_row_stride + column * value_column_stride,
                tl.cast(value_head_stride, tl.int64), block - QUERY_BLOCKS,
                NUM_KV_HEADS, HALF, BLOCK_HEADS, BLOCK_HALF,
            )  # fmt: skip


@triton.jit
def _backward_block(
    grad_ptr, x_ptr, dx_ptr, weight_ptr, share_ptr, cos_ptr, sin_ptr,
    grad_token_stride, x_token_stride, first_token, last_token, block, eps,
    NUM_HEADS: tl.constexpr,
    HALF: tl.constexpr, WEIGHTS: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    # In 32 bits, the heads of width 72 spill on sm_100.
    heads = (block * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)).to(tl.int64)
    cols = tl.arange(0, BLOCK_HALF)
    in_half = cols < HALF
    mask = (heads < NUM_HEADS)[:, None] & in_half[None, :]  # [BLOCK_HEADS, BLOCK_HALF]
    tile = heads[:, None] * (2 * HALF) + cols[None, :]
    w1 = tl.load(weight_ptr + cols, mask=in_half, other=0.0).to(tl.float32)[None, :]
    w2 = tl.load(weight_ptr + HALF + cols, mask=in_half, other=0.0).to(tl.float32)[None, :]
    # Kept per head until the end: one reduction across threads instead of one per token.
    dw1 = tl.zeros([BLOCK_HEADS, BLOCK_HALF], dtype=tl.float32)
    dw2 = tl.zeros([BLOCK_HEADS, BLOCK_HALF], dtype=tl.float32)
    for token in range(first_token, last_token):  # int64
        grad_row = grad_ptr + token * grad_token_stride + tile
        g1 = tl.load(grad_row, mask=mask, other=0.0).to(tl.float32)
        g2 = tl.load(grad_row + HALF, mask=mask, other=0.0).to(tl.float32)
        x_row = x_ptr + token * x_token_stride + tile
        x1 = tl.load(x_row, mask=mask, other=0.0).to(tl.float32)
        x2 = tl.load(x_row + HALF, mask=mask, other=0.0).to(tl.float32)
        cos = tl.load(cos_ptr + token * HALF + cols, mask=in_half, other=0.0)[None, :]
        sin = tl.load(sin_ptr + token * HALF + cols, mask=in_half, other=0.0)[None, :]
        rstd = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, axis=1) / (2 * HALF) + eps)[:, None]
        n1 = x1 * rstd
        n2 = x2 * rstd
        dy1 = g1 * cos + g2 * sin  # the rotation turned back
        dy2 = g2 * cos - g1 * sin
        if WEIGHTS:
            dw1 += dy1 * n1
            dw2 += dy2 * n2
        dn1 = dy1 * w1
        dn2 = dy2 * w2
        mean = (tl.sum(dn1 * n1 + dn2 * n2, axis=1) / (2 * HALF))[:, None]
        dx_row = dx_ptr + token * (NUM_HEADS * 2 * HALF) + tile  # contiguous: allocated here
        tl.store(dx_row, ((dn1 - n1 * mean) * rstd).to(dx_ptr.dtype.element_ty), mask=mask)
        tl.store(dx_row + HALF, ((dn2 - n2 * mean) * rstd).to(dx_ptr.dtype.element_ty), mask=mask)
    if WEIGHTS:
        tl.store(share_ptr + cols, tl.sum(dw1, axis=0), mask=in_half)
        tl.store(share_ptr + HALF + cols, tl.sum(dw2, axis=0), mask=in_half)


@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["run_tokens"])
def _backward_kernel(
    query_grad_ptr, key_grad_ptr, query_ptr, key_ptr, query_dx_ptr, key_dx_ptr,
    query_weight_ptr, key_weight_ptr, share_ptr, cos_ptr, sin_ptr,
    query_grad_token_stride, key_grad_token_stride, query_token_stride, key_token_stride, num_tokens, run_tokens, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr, WEIGHTS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    QUERY_BLOCKS: tl.constexpr = (NUM_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    BLOCKS: tl.constexpr = QUERY_BLOCKS + (NUM_KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    block = tl.program_id(0) % BLOCKS
    first_token = (tl.program_id(0) // BLOCKS).to(tl.int64) * run_tokens
    last_token = tl.minimum(first_token + run_tokens, num_tokens)
    share_ptr += tl.program_id(0).to(tl.int64) * (2 * HALF)
    if block < QUERY_BLOCKS:
        _backward_block(
            query_grad_ptr, query_ptr, query_dx_ptr, query_weight_ptr, share_ptr, cos_ptr, sin_ptr,
            query_grad_token_stride, query_token_stride, first_token, last_token, block, eps,
            NUM_HEADS, HALF, WEIGHTS, BLOCK_HEADS, BLOCK_HALF,
        )  # fmt: skip
    else:
        _backward_block(
            key_grad_ptr, key_ptr, key_dx_ptr, key_weight_ptr, share_ptr, cos_ptr, sin_ptr,
            key_grad_token_stride, key_token_stride, first_token, last_token, block - QUERY_BLOCKS, eps,
            NUM_KV_HEADS, HALF, WEIGHTS, BLOCK_HEADS, BLOCK_HALF,
        )  # fmt: skip

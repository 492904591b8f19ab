"""Triton kernels of the backward of packed attention: one for the queries, one for keys and values.

The design is that of `triton_kernel.py`.
"""

# Triton takes plain values where its annotations say constexpr.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernel_tiles import (
    LOG2E,
    add_product,
    begin_products,
    block_at,
    count_blocks,
    end_products,
    find_prompt,
    find_tile,
    hide_unseen,
    last_query,
    load_columns,
    load_head,
    products,
    store_head,
)

SIZES = [*("num_tokens", "num_segments", "q_row", "q_head", "k_row", "k_head", "v_row", "v_head", "g_row", "g_head")]


@triton.jit
def _query_gradient(
    lo, hi, q_lo, q_hi, g_lo, g_hi, lse, mean, row, K, V, prompt, num_prompt, prompt_end, own, num_own, own_end,
    k_row, v_row, scale,
    D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, N: tl.constexpr, AHEAD: tl.constexpr, MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    """Add what blocks of keys, as in `_attend`, give to the gradient [M, LO], [M, HI] of a tile of queries."""
    num_blocks = num_prompt + num_own
    start, limit = block_at(0, prompt, num_prompt, prompt_end, own, own_end, N)
    scored = begin_products(q_lo, q_hi, K, start, limit, k_row, D, LO, HI, N, True) if HI and AHEAD else 0.0
    risen = begin_products(g_lo, g_hi, V, start, limit, v_row, D, LO, HI, N, True) if AHEAD else 0.0
    for block in tl.range(0, num_blocks):
        start, limit = block_at(block, prompt, num_prompt, prompt_end, own, own_end, N)
        k_lo, k_hi = load_head(K, start, limit, k_row, D, LO, HI, N, MASKED)
        v_lo = k_lo
        if HI or not AHEAD:
            v_lo = load_columns(V, start, limit, v_row, D, 0, LO, N, MASKED)
        if HI:
            part = scored if AHEAD else begin_products(q_lo, q_hi, K, start, limit, k_row, D, LO, HI, N, MASKED)
            scores = end_products(part, q_lo, k_lo)  # [M, N]
        else:
            scores = products(q_lo, k_lo)
        if MASKED:
            scores = hide_unseen(scores, row, start, limit, N, CAUSAL)
        weights = tl.exp2(scores * scale - lse[:, None])
        if HI:
            part = risen if AHEAD else begin_products(g_lo, g_hi, V, start, limit, v_row, D, LO, HI, N, MASKED)
            rise = end_products(part, g_lo, v_lo)
        else:
            rise = risen if AHEAD else products(g_lo, v_lo)
        slopes = weights * (rise - mean[:, None])  # [M, N]
        lo, hi = add_product(lo, hi, slopes, k_lo, k_hi, HI)
        start, limit = block_at(tl.minimum(block + 1, num_blocks - 1), prompt, num_prompt, prompt_end, own, own_end, N)
        if HI and AHEAD:
            scored = begin_products(q_lo, q_hi, K, start, limit, k_row, D, LO, HI, N, MASKED)
        if AHEAD:
            risen = begin_products(g_lo, g_hi, V, start, limit, v_row, D, LO, HI, N, MASKED)
    return lo, hi


@triton.jit(do_not_specialize=SIZES)
def _backward_query(
    Q, K, V, OUT, GRAD, LSE, MEAN, DQ, SEQLENS, PROMPTS, COS, SIN, num_tokens, num_segments,
    q_row, q_head, k_row, k_head, v_row, v_head, g_row, g_head, scale,
    GROUP: tl.constexpr, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, CAUSAL: tl.constexpr,
    PREFIX: tl.constexpr, ROTARY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One program: dQ of BLOCK_M queries of one segment and head; leaves each row's sum of GRAD * OUT in MEAN.

    With ROTARY, Q and K are turned already and lie as interleaved pairs.
    """
    tile = tl.program_id(0)
    if CAUSAL:
        tile = tl.num_programs(0) - 1 - tile
    segment, first, stop, start = find_tile(tile, SEQLENS, num_segments, num_tokens, BLOCK_M)
    if start >= stop:
        return
    head = tl.program_id(1).to(tl.int64)
    out_row = tl.num_programs(1) * D
    k_row, v_row = k_row * 8, v_row * 8
    K += head // GROUP * k_head * 8
    V += head // GROUP * v_head * 8
    row = start + tl.arange(0, BLOCK_M)
    q_lo, q_hi = load_head(Q + head * q_head * 8, start, stop, q_row * 8, D, LO, HI, BLOCK_M, True)
    g_lo, g_hi = load_head(GRAD + head * g_head * 8, start, stop, g_row * 8, D, LO, HI, BLOCK_M, True)
    o_lo, o_hi = load_head(OUT + head * D, start, stop, out_row, D, LO, HI, BLOCK_M, True)
    mean = tl.sum(g_lo.to(tl.float32) * o_lo, 1)
    if HI:
        mean += tl.sum(g_hi.to(tl.float32) * o_hi, 1)
    tl.store(MEAN + head * num_tokens + row, mean, mask=row < stop)
    lse = tl.load(LSE + head * num_tokens + row, mask=row < stop, other=0.0) * LOG2E
    lo = tl.zeros([BLOCK_M, LO], tl.float32)
    hi = tl.zeros([BLOCK_M, 16], tl.float32)

    own_whole, own_rest, own_edge = count_blocks(
        first, start if CAUSAL else stop, tl.minimum(start + BLOCK_M, stop) if CAUSAL else stop, BLOCK_N
    )
    prompt, prompt_end, prompt_whole, prompt_rest, prompt_edge = 0, 0, 0, 0, 0
    if PREFIX:
        prompt, prompt_end = find_prompt(segment, SEQLENS, PROMPTS, num_segments, num_tokens)
        prompt_whole, prompt_rest, prompt_edge = count_blocks(prompt, prompt_end, prompt_end, BLOCK_N)
    lo, hi = _query_gradient(
        lo, hi, q_lo, q_hi, g_lo, g_hi, lse, mean, row, K, V, prompt, prompt_whole, prompt_end, first, own_whole, stop,
        k_row, v_row, scale, D, LO, HI, BLOCK_N, AHEAD, False, False,
    )  # fmt: skip
    lo, hi = _query_gradient(
        lo, hi, q_lo, q_hi, g_lo, g_hi, lse, mean, row, K, V, prompt_rest, prompt_edge, prompt_end, own_rest, own_edge,
        stop, k_row, v_row, scale, D, LO, HI, BLOCK_N, AHEAD, True, CAUSAL,
    )  # fmt: skip
    natural = scale / LOG2E
    store_head(DQ + head * D, lo * natural, hi * natural, COS, SIN, start, stop, out_row, D, LO, HI, BLOCK_M, ROTARY)


@triton.jit
def _key_gradient(
    dk_lo, dk_hi, dv_lo, dv_hi, k_lo, k_hi, v_lo, v_hi, column, Q, GRAD, LSE, MEAN, first_head, begin, num_blocks,
    limit, num_tokens, q_row, q_head, g_row, g_head, scale,
    GROUP: tl.constexpr, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, M: tl.constexpr, AHEAD: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    """Add what blocks of queries of all heads give to the gradients [N, LO], [N, HI] of a tile of keys and values.

    Heads and blocks are one loop, whose copies run on from head to head; nested ones need the registers of both.
    """
    num_steps = num_blocks * GROUP
    q, g = Q + first_head * q_head, GRAD + first_head * g_head
    scored = begin_products(k_lo, k_hi, q, begin, limit, q_row, D, LO, HI, M, True) if HI and AHEAD else 0.0
    risen = begin_products(v_lo, v_hi, g, begin, limit, g_row, D, LO, HI, M, True) if AHEAD else 0.0
    for step in tl.range(0, num_steps):
        start, head = begin + step // GROUP * M, first_head + step % GROUP
        row = start + tl.arange(0, M)
        q_lo, q_hi = load_head(Q + head * q_head, start, limit, q_row, D, LO, HI, M, True)
        g_lo, g_hi = load_head(GRAD + head * g_head, start, limit, g_row, D, LO, HI, M, True)
        lse = tl.load(LSE + head * num_tokens + row, mask=row < limit, other=0.0) * LOG2E
        mean = tl.load(MEAN + head * num_tokens + row, mask=row < limit, other=0.0)
        if HI:
            scores = end_products(scored if AHEAD else products(k_hi, q_hi), k_lo, q_lo)  # [N, M]
        else:
            scores = products(k_lo, q_lo)
        if CAUSAL:
            scores = tl.where(column[:, None] <= row[None, :], scores, float("-inf"))
        weights = tl.exp2(scores * scale - lse[None, :])  # rows from `limit` on: 1, times a gradient of 0
        dv_lo, dv_hi = add_product(dv_lo, dv_hi, weights, g_lo, g_hi, HI)
        if HI:
            rise = end_products(risen if AHEAD else products(v_hi, g_hi), v_lo, g_lo)
        else:
            rise = risen if AHEAD else products(v_lo, g_lo)
        slopes = weights * (rise - mean[None, :])  # [N, M]
        dk_lo, dk_hi = add_product(dk_lo, dk_hi, slopes, q_lo, q_hi, HI)
        start, head = begin + (step + 1) // GROUP * M, first_head + (step + 1) % GROUP
        if HI and AHEAD:
            scored = begin_products(k_lo, k_hi, Q + head * q_head, start, limit, q_row, D, LO, HI, M, True)
        if AHEAD:
            risen = begin_products(v_lo, v_hi, GRAD + head * g_head, start, limit, g_row, D, LO, HI, M, True)
    return dk_lo, dk_hi, dv_lo, dv_hi


@triton.jit(do_not_specialize=SIZES)
def _backward_key(
    Q, K, V, GRAD, LSE, MEAN, DK, DV, SEQLENS, PROMPTS, COS, SIN, num_tokens, num_segments,
    q_row, q_head, k_row, k_head, v_row, v_head, g_row, g_head, scale,
    GROUP: tl.constexpr, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, CAUSAL: tl.constexpr,
    PREFIX: tl.constexpr, ROTARY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One program: dK and dV of BLOCK_N keys of one segment and key head, over all query heads that read it."""
    tile = tl.program_id(0)  # early tiles are seen by most queries: they begin
    segment, first, stop, start = find_tile(tile, SEQLENS, num_segments, num_tokens, BLOCK_N)
    if start >= stop:
        return
    kv_head = tl.program_id(1).to(tl.int64)
    out_row = tl.num_programs(1) * D
    q_row, g_row = q_row * 8, g_row * 8
    column = start + tl.arange(0, BLOCK_N)
    k_lo, k_hi = load_head(K + kv_head * k_head * 8, start, stop, k_row * 8, D, LO, HI, BLOCK_N, True)
    v_lo, v_hi = load_head(V + kv_head * v_head * 8, start, stop, v_row * 8, D, LO, HI, BLOCK_N, True)
    dk_lo = tl.zeros([BLOCK_N, LO], tl.float32)
    dv_lo = tl.zeros([BLOCK_N, LO], tl.float32)
    dk_hi = tl.zeros([BLOCK_N, 16], tl.float32)
    dv_hi = tl.zeros([BLOCK_N, 16], tl.float32)
    last = stop
    if PREFIX:
        last = last_query(segment, stop, SEQLENS, PROMPTS, num_segments, num_tokens)
    # Blocks of queries that see this tile whole, and before them those that overlap it.
    num_edge, begin = 0, first
    if CAUSAL:
        num_edge = (tl.minimum(start + BLOCK_N, last) - start + BLOCK_M - 1) // BLOCK_M
        begin = tl.minimum(start + num_edge * BLOCK_M, last)
    num_whole = (last - begin + BLOCK_M - 1) // BLOCK_M
    if not CAUSAL:
        # Never less; but a way around the loop, as the compiler sees it, makes ptxas wait for each product by itself.
        num_whole = tl.maximum(num_whole, 1)
    q_head, g_head = q_head * 8, g_head * 8
    dk_lo, dk_hi, dv_lo, dv_hi = _key_gradient(
        dk_lo, dk_hi, dv_lo, dv_hi, k_lo, k_hi, v_lo, v_hi, column, Q, GRAD, LSE, MEAN, kv_head * GROUP, begin,
        num_whole, last, num_tokens, q_row, q_head, g_row, g_head, scale, GROUP, D, LO, HI, BLOCK_M, AHEAD,
        False,
    )  # fmt: skip
    if CAUSAL:
        dk_lo, dk_hi, dv_lo, dv_hi = _key_gradient(
            dk_lo, dk_hi, dv_lo, dv_hi, k_lo, k_hi, v_lo, v_hi, column, Q, GRAD, LSE, MEAN, kv_head * GROUP, start,
            num_edge, last, num_tokens, q_row, q_head, g_row, g_head, scale, GROUP, D, LO, HI, BLOCK_M, AHEAD,
            True,
        )  # fmt: skip
    natural = scale / LOG2E
    store_head(DV + kv_head * D, dv_lo, dv_hi, COS, SIN, start, stop, out_row, D, LO, HI, BLOCK_N, False)
    store_head(
        DK + kv_head * D, dk_lo * natural, dk_hi * natural, COS, SIN, start, stop, out_row, D, LO, HI, BLOCK_N, ROTARY
    )

"""Triton kernels of packed attention: forward, gradient of the queries, gradient of keys and values.

Tiles. Segment j owns the tile numbers seqlens[j] // BLOCK + j and up; every segment has at least as many as it needs,
there are T // BLOCK + s in all, and a program finds its segment by counting starts. No map of tiles is built, nothing
depends on the longest segment, and surplus programs end at once.

Head widths. 72 and 80 columns are two matrix products of 64 and 16 columns (LO, HI), not one of 128.

Queue. The matrix units of a Hopper work through a queue, and Triton empties it behind each product that its own pass of
a loop reads. So with AHEAD, which the table decides, a pass begins the products of the next block (`begin_products`)
behind its own last one: the columns HI of every product or, where there are none, one of the two of the backward whole.

Rotation. The rotated keys serve every tile of queries, so they are made once (`_rotate`: 4 bytes an element; turning
them again for each tile would read four times the bytes that the products need). They are stored as interleaved pairs
(x[0], x[D / 2], x[1], ...): scores do not mind an order of columns that queries and keys share, and no pair falls
between LO and HI. The forward turns its queries in registers; gradients are turned back there before the one cast.

Determinism. One kernel over tiles of queries writes dQ, one over tiles of keys writes dK and dV, looping over the query
heads of its key head. No atomics: 7 matrix products against 5 of an atomic backward.

Strides are passed in units of 8 elements, so that the compiler knows 16-bit rows to be aligned to 16 bytes; else it
copies them word by word and without the asynchronous pipeline. It needs to know no more of them, so one binary serves
every layout, number of tokens and number of segments. As compiled for sm_90 the columns of LO are copied 16 bytes at a
time, those of HI 8, and 4 in loops over 32 rows.

fp32 inputs are multiplied as three TF32 products each ("tf32x3", a few units of fp32's last place): plain fp32 products
unroll into scalar instructions with kilobytes of stack. 16-bit inputs do not know the difference.

Floors for one 1280 x 1280 image, 6,400 tokens x 16 heads x 72, at 790 TFLOP/s and 4.3 TB/s (counted, not measured): 4
T^2 H D = 189 GFLOP or 239 us forward (266 us for the 80 columns that are computed), 2.5 times the useful work backward;
59 MB or 14 us of inputs and outputs; 29 MB or 7 us for the rotated keys.
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
    load_columns,
    load_head,
    load_head_turned,
    products,
    store_head,
)


@triton.jit
def _attend(
    lo, hi, top, total, q_lo, q_hi, row, K, V, prompt, num_prompt, prompt_end, own, num_own, own_end, k_row, v_row,
    scale,
    D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, N: tl.constexpr, AHEAD: tl.constexpr, MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    """Add blocks of keys, first of the prompt and then of the segment, to the running softmax of a tile of queries.

    `lo`, `hi`: sums of weighted values [M, LO], [M, HI]; `top`: largest score so far in powers of 2, `total`: sum of
    weights [M].
    """
    num_blocks = num_prompt + num_own
    start, limit = block_at(0, prompt, num_prompt, prompt_end, own, own_end, N)
    begun = begin_products(q_lo, q_hi, K, start, limit, k_row, D, LO, HI, N, True) if HI and AHEAD else 0.0
    for block in tl.range(0, num_blocks):
        start, limit = block_at(block, prompt, num_prompt, prompt_end, own, own_end, N)
        k_lo = load_columns(K, start, limit, k_row, D, 0, LO, N, MASKED)
        if HI:
            part = begun if AHEAD else begin_products(q_lo, q_hi, K, start, limit, k_row, D, LO, HI, N, MASKED)
            scores = end_products(part, q_lo, k_lo)  # [M, N]
        else:
            scores = products(q_lo, k_lo)
        if MASKED:
            scores = hide_unseen(scores, row, start, limit, N, CAUSAL)
        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - new_top[:, None])  # [M, N]
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        top = new_top
        v_lo, v_hi = load_head(V, start, limit, v_row, D, LO, HI, N, MASKED)
        lo, hi = add_product(lo * shrink[:, None], hi * shrink[:, None], weights, v_lo, v_hi, HI)
        if HI and AHEAD:
            # Behind the last block it is begun again, for nothing: that costs less than a mask in every pass.
            start, limit = block_at(
                tl.minimum(block + 1, num_blocks - 1), prompt, num_prompt, prompt_end, own, own_end, N
            )
            begun = begin_products(q_lo, q_hi, K, start, limit, k_row, D, LO, HI, N, MASKED)
    return lo, hi, top, total


@triton.jit(do_not_specialize=["num_tokens", "num_segments", "q_row", "q_head", "k_row", "k_head", "v_row", "v_head"])
def _forward(
    Q, K, V, OUT, LSE, SEQLENS, PROMPTS, COS, SIN, num_tokens, num_segments,
    q_row, q_head, k_row, k_head, v_row, v_head, scale,
    GROUP: tl.constexpr, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, CAUSAL: tl.constexpr,
    PREFIX: tl.constexpr, ROTARY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one segment and one head. `scale` counts in powers of 2."""
    tile = tl.program_id(0)
    if CAUSAL:
        tile = tl.num_programs(0) - 1 - tile  # the late tiles see most keys: begin with them
    segment, first, stop, start = find_tile(tile, SEQLENS, num_segments, num_tokens, BLOCK_M)
    if start >= stop:
        return
    head = tl.program_id(1).to(tl.int64)
    q_row, k_row, v_row = q_row * 8, k_row * 8, v_row * 8
    Q += head * q_head * 8
    K += head // GROUP * k_head * 8
    V += head // GROUP * v_head * 8
    row = start + tl.arange(0, BLOCK_M)
    if ROTARY:
        q_lo, q_hi = load_head_turned(Q, COS, SIN, start, stop, q_row, D, LO, HI, BLOCK_M)
    else:
        q_lo, q_hi = load_head(Q, start, stop, q_row, D, LO, HI, BLOCK_M, True)
    lo = tl.zeros([BLOCK_M, LO], tl.float32)
    hi = tl.zeros([BLOCK_M, 16], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    # Blocks that every row sees whole need no mask: they come first.
    own_whole, own_rest, own_edge = count_blocks(
        first, start if CAUSAL else stop, tl.minimum(start + BLOCK_M, stop) if CAUSAL else stop, BLOCK_N
    )
    prompt, prompt_end, prompt_whole, prompt_rest, prompt_edge = 0, 0, 0, 0, 0
    if PREFIX:
        prompt, prompt_end = find_prompt(segment, SEQLENS, PROMPTS, num_segments, num_tokens)
        prompt_whole, prompt_rest, prompt_edge = count_blocks(prompt, prompt_end, prompt_end, BLOCK_N)
    lo, hi, top, total = _attend(
        lo, hi, top, total, q_lo, q_hi, row, K, V, prompt, prompt_whole, prompt_end, first, own_whole, stop,
        k_row, v_row, scale, D, LO, HI, BLOCK_N, AHEAD, False, False,
    )  # fmt: skip
    lo, hi, top, total = _attend(
        lo, hi, top, total, q_lo, q_hi, row, K, V, prompt_rest, prompt_edge, prompt_end, own_rest, own_edge, stop,
        k_row, v_row, scale, D, LO, HI, BLOCK_N, AHEAD, True, CAUSAL,
    )  # fmt: skip
    OUT += head * D
    lo, hi = lo / total[:, None], hi / total[:, None]
    store_head(OUT, lo, hi, COS, SIN, start, stop, tl.num_programs(1) * D, D, LO, HI, BLOCK_M, False)
    tl.store(LSE + head * num_tokens + row, (top + tl.log2(total)) / LOG2E, mask=row < stop)


@triton.jit(do_not_specialize=["num_tokens", "x_row", "x_head"])
def _rotate(
    X, OUT, COS, SIN, num_tokens, x_row, x_head, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_ROWS tokens of one head, turned and stored as interleaved pairs."""
    start = tl.program_id(0) * BLOCK_ROWS
    head = tl.program_id(1).to(tl.int64)
    out_row = tl.num_programs(1) * D
    lo, hi = load_head_turned(X + head * x_head * 8, COS, SIN, start, num_tokens, x_row * 8, D, LO, HI, BLOCK_ROWS)
    store_head(OUT + head * D, lo, hi, COS, SIN, start, num_tokens, out_row, D, LO, HI, BLOCK_ROWS, False)

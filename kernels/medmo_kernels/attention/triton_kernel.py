"""Triton kernels of packed attention: forward, gradient of the queries, gradient of keys and values.

Tiles. Segment j owns the tile numbers seqlens[j] // BLOCK + j and up; every segment has at least as many as it needs,
there are T // BLOCK + s in all, and a program finds its segment by counting starts. No map of tiles is built, nothing
depends on the longest segment, and surplus programs end at once.

Head widths. 72 and 80 columns are two matrix products of 64 and 16 columns (LO, HI), not one of 128.

Rotation. The rotated keys serve every tile of queries, so they are made once (`_rotate`: 4 bytes an element; turning
them again for each tile would read four times the bytes that the products need). They are stored as interleaved pairs
(x[0], x[D / 2], x[1], ...): scores do not mind an order of columns that queries and keys share, and no pair falls
between LO and HI. The forward turns its queries in registers; gradients are turned back there before the one cast.

Determinism. One kernel over tiles of queries writes dQ, one over tiles of keys writes dK and dV, looping over the query
heads of its key head. No atomics: 7 matrix products against 5 of an atomic backward.

Strides are passed in units of 8 elements, so that the compiler knows 16-bit rows to be aligned to 16 bytes; else it
copies them word by word and without the asynchronous pipeline.

fp32 inputs are multiplied as three TF32 products each ("tf32x3", a few units of fp32's last place): plain fp32 products
unroll into scalar instructions with kilobytes of stack. 16-bit inputs do not know the difference.

Cost of one 1280 x 1280 image, 6,400 tokens x 16 heads x 72, at 790 TFLOP/s and 4.3 TB/s: 4 T^2 H D = 189 GFLOP or
239 us forward (266 us for the 80 columns that are computed), 2.5 times the useful work backward; 59 MB or 14 us of
inputs and outputs; 29 MB or 7 us for the rotated keys.
"""

# Triton takes plain values where its annotations say constexpr.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


# --- where a program works -------------------------------------------------------------------------------------------


@triton.jit
def _tile(tile, SEQLENS, num_segments, BLOCK: tl.constexpr):
    """Return the segment that owns a tile number, its first and last token, and where the tile starts.

    The segment is the last one whose first tile is not beyond this one.
    """
    started = 0
    for chunk in range(0, num_segments, 128):
        other = chunk + tl.arange(0, 128)
        inside = other < num_segments
        first = tl.load(SEQLENS + other, mask=inside, other=0) // BLOCK + other
        started += tl.sum(((first <= tile) & inside).to(tl.int32), 0)
    segment = started - 1
    begin = tl.load(SEQLENS + segment)
    end = tl.load(SEQLENS + segment + 1)
    return segment, begin, end, begin + (tile - begin // BLOCK - segment) * BLOCK


@triton.jit
def _prompt(segment, SEQLENS, PROMPTS):
    """Return where a segment's prompt begins and ends; nothing lies between where it has none."""
    prompt = tl.load(PROMPTS + segment)
    known = tl.maximum(prompt, 0)
    begin = tl.load(SEQLENS + known)
    return begin, tl.where(prompt >= 0, tl.load(SEQLENS + known + 1), begin)


@triton.jit
def _blocks(begin, seen, end, N: tl.constexpr):
    """Return how many blocks from `begin` on end by `seen`, where the rest begins, and in how many it reaches `end`."""
    whole = (seen - begin) // N
    rest = begin + whole * N
    return whole, rest, (end - rest + N - 1) // N


@triton.jit
def _last_query(segment, end, SEQLENS, PROMPTS, num_segments):
    """Return where the tokens end that see a segment: behind its last branch, or at its own end.

    Branches lie directly behind their prompt, so the tokens that see a key are one stretch in every case.
    """
    last = end
    for chunk in range(0, num_segments, 128):
        other = chunk + tl.arange(0, 128)
        prompt = tl.load(PROMPTS + other, mask=other < num_segments, other=-1)
        last = tl.maximum(last, tl.max(tl.load(SEQLENS + other + 1, mask=prompt == segment, other=0), 0))
    return last


# --- reading and writing tiles ---------------------------------------------------------------------------------------


@triton.jit
def _block(X, start, limit, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Return the places of columns FIRST .. FIRST + WIDTH of the rows from `start`, and the rows and columns."""
    row = tl.arange(0, ROWS)
    column = FIRST + tl.arange(0, WIDTH)
    places = X + tl.cast(start, tl.int64) * stride + row[:, None] * stride + column[None, :]  # [ROWS, WIDTH]
    return places, (start + row < limit)[:, None], column[None, :]


@triton.jit
def _load(
    X, start, limit, stride, D: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Load a block: [ROWS, WIDTH], zeros from column D on, and where MASKED also from row `limit` on."""
    places, inside, column = _block(X, start, limit, stride, FIRST, WIDTH, ROWS)
    if MASKED and FIRST + WIDTH > D:
        return tl.load(places, mask=inside & (column < D), other=0.0)
    elif MASKED:
        return tl.load(places, mask=inside, other=0.0)
    elif FIRST + WIDTH > D:
        return tl.load(places, mask=column < D, other=0.0)
    else:
        return tl.load(places)


@triton.jit
def _store(X, x, start, limit, stride, D: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Write a block [ROWS, WIDTH] before row `limit` and column D."""
    places, inside, column = _block(X, start, limit, stride, FIRST, WIDTH, ROWS)
    tl.store(places, x.to(X.dtype.element_ty), mask=inside & (column < D))


@triton.jit
def _load_turned(
    X, COS, SIN, start, limit, stride, D: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """Load columns FIRST .. FIRST + WIDTH of the interleaved pairs, turned: [ROWS, WIDTH] in the dtype of X."""
    cos = _load(COS, start, limit, D // 2, D // 2, FIRST // 2, WIDTH // 2, ROWS, True)
    sin = _load(SIN, start, limit, D // 2, D // 2, FIRST // 2, WIDTH // 2, ROWS, True)
    first = _load(X, start, limit, stride, D // 2, FIRST // 2, WIDTH // 2, ROWS, True).to(tl.float32)
    second = _load(X + D // 2, start, limit, stride, D // 2, FIRST // 2, WIDTH // 2, ROWS, True).to(tl.float32)
    return tl.interleave(first * cos - second * sin, second * cos + first * sin).to(X.dtype.element_ty)


@triton.jit
def _store_turned_back(
    X, x, COS, SIN, start, limit, stride, D: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """Turn a gradient [ROWS, WIDTH] of interleaved pairs back and write it in the tensor's own order of columns."""
    cos = _load(COS, start, limit, D // 2, D // 2, FIRST // 2, WIDTH // 2, ROWS, True)
    sin = _load(SIN, start, limit, D // 2, D // 2, FIRST // 2, WIDTH // 2, ROWS, True)
    first, second = tl.split(tl.reshape(x, (ROWS, WIDTH // 2, 2)))
    _store(X, first * cos + second * sin, start, limit, stride, D // 2, FIRST // 2, WIDTH // 2, ROWS)
    _store(X + D // 2, second * cos - first * sin, start, limit, stride, D // 2, FIRST // 2, WIDTH // 2, ROWS)


@triton.jit
def _load_head(
    X, start, limit, stride, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Load whole rows: [ROWS, LO] and [ROWS, HI], the second meaningless where HI is 0."""
    lo = _load(X, start, limit, stride, D, 0, LO, ROWS, MASKED)
    hi = lo
    if HI:
        hi = _load(X, start, limit, stride, D, LO, HI, ROWS, MASKED)
    return lo, hi


@triton.jit
def _load_head_turned(
    X, COS, SIN, start, limit, stride, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr
):
    lo = _load_turned(X, COS, SIN, start, limit, stride, D, 0, LO, ROWS)
    hi = lo
    if HI:
        hi = _load_turned(X, COS, SIN, start, limit, stride, D, LO, HI, ROWS)
    return lo, hi


@triton.jit
def _store_head(
    X, lo, hi, COS, SIN, start, limit, stride, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr,
    TURN_BACK: tl.constexpr,
):  # fmt: skip
    if TURN_BACK:
        _store_turned_back(X, lo, COS, SIN, start, limit, stride, D, 0, LO, ROWS)
        if HI:
            _store_turned_back(X, hi, COS, SIN, start, limit, stride, D, LO, HI, ROWS)
    else:
        _store(X, lo, start, limit, stride, D, 0, LO, ROWS)
        if HI:
            _store(X, hi, start, limit, stride, D, LO, HI, ROWS)


@triton.jit
def _products(a_lo, a_hi, b_lo, b_hi, HI: tl.constexpr):
    """Return a b^T over all columns: [ROWS of a, ROWS of b] fp32."""
    product = tl.dot(a_lo, tl.trans(b_lo), input_precision="tf32x3")
    if HI:
        product = tl.dot(a_hi, tl.trans(b_hi), product, input_precision="tf32x3")
    return product


@triton.jit
def _add_product(lo, hi, weights, x_lo, x_hi, HI: tl.constexpr):
    """Return (lo, hi) + weights x: [M, LO] and [M, HI] fp32."""
    weights = weights.to(x_lo.dtype)
    lo = tl.dot(weights, x_lo, lo, input_precision="tf32x3")
    if HI:
        hi = tl.dot(weights, x_hi, hi, input_precision="tf32x3")
    return lo, hi


@triton.jit
def _visible(scores, row, start, limit, N: tl.constexpr, CAUSAL: tl.constexpr):
    """Return [M, N] scores with -inf for keys from `limit` on, and with CAUSAL for those behind their row."""
    column = start + tl.arange(0, N)
    visible = (column < limit)[None, :]
    if CAUSAL:
        visible = visible & (column[None, :] <= row[:, None])
    return tl.where(visible, scores, float("-inf"))


# --- forward ---------------------------------------------------------------------------------------------------------


@triton.jit
def _attend(
    lo, hi, top, total, q_lo, q_hi, row, K, V, prompt, num_prompt, prompt_end, own, num_own, own_end, k_row, v_row,
    scale,
    D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, N: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Add blocks of keys, first of the prompt and then of the segment, to the running softmax of a tile of queries.

    `lo`, `hi`: sums of weighted values [M, LO], [M, HI]; `top`: largest score so far in powers of 2, `total`: sum of
    weights [M].
    """
    for block in tl.range(0, num_prompt + num_own):
        start = tl.where(block < num_prompt, prompt + block * N, own + (block - num_prompt) * N)
        limit = tl.where(block < num_prompt, prompt_end, own_end)
        k_lo, k_hi = _load_head(K, start, limit, k_row, D, LO, HI, N, MASKED)
        scores = _products(q_lo, q_hi, k_lo, k_hi, HI)  # [M, N]
        if MASKED:
            scores = _visible(scores, row, start, limit, N, CAUSAL)
        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - new_top[:, None])  # [M, N]
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        top = new_top
        v_lo, v_hi = _load_head(V, start, limit, v_row, D, LO, HI, N, MASKED)
        lo, hi = _add_product(lo * shrink[:, None], hi * shrink[:, None], weights, v_lo, v_hi, HI)
    return lo, hi, top, total


@triton.jit
def _forward(
    Q, K, V, OUT, LSE, SEQLENS, PROMPTS, COS, SIN, num_tokens, num_segments,
    q_row, q_head, k_row, k_head, v_row, v_head, scale,
    GROUP: tl.constexpr, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, CAUSAL: tl.constexpr,
    PREFIX: tl.constexpr, ROTARY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one segment and one head. `scale` counts in powers of 2."""
    tile = tl.program_id(0)
    if CAUSAL:
        tile = tl.num_programs(0) - 1 - tile  # the late tiles see most keys: begin with them
    segment, first, stop, start = _tile(tile, SEQLENS, num_segments, BLOCK_M)
    if start >= stop:
        return
    head = tl.program_id(1).to(tl.int64)
    q_row, k_row, v_row = q_row * 8, k_row * 8, v_row * 8
    Q += head * q_head * 8
    K += head // GROUP * k_head * 8
    V += head // GROUP * v_head * 8
    row = start + tl.arange(0, BLOCK_M)
    if ROTARY:
        q_lo, q_hi = _load_head_turned(Q, COS, SIN, start, stop, q_row, D, LO, HI, BLOCK_M)
    else:
        q_lo, q_hi = _load_head(Q, start, stop, q_row, D, LO, HI, BLOCK_M, True)
    lo = tl.zeros([BLOCK_M, LO], tl.float32)
    hi = tl.zeros([BLOCK_M, 16], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    # Blocks that every row sees whole need no mask: they come first.
    own_whole, own_rest, own_edge = _blocks(
        first, start if CAUSAL else stop, tl.minimum(start + BLOCK_M, stop) if CAUSAL else stop, BLOCK_N
    )
    prompt, prompt_end, prompt_whole, prompt_rest, prompt_edge = 0, 0, 0, 0, 0
    if PREFIX:
        prompt, prompt_end = _prompt(segment, SEQLENS, PROMPTS)
        prompt_whole, prompt_rest, prompt_edge = _blocks(prompt, prompt_end, prompt_end, BLOCK_N)
    lo, hi, top, total = _attend(
        lo, hi, top, total, q_lo, q_hi, row, K, V, prompt, prompt_whole, prompt_end, first, own_whole, stop,
        k_row, v_row, scale, D, LO, HI, BLOCK_N, False, False,
    )  # fmt: skip
    lo, hi, top, total = _attend(
        lo, hi, top, total, q_lo, q_hi, row, K, V, prompt_rest, prompt_edge, prompt_end, own_rest, own_edge, stop,
        k_row, v_row, scale, D, LO, HI, BLOCK_N, True, CAUSAL,
    )  # fmt: skip
    OUT += head * D
    lo, hi = lo / total[:, None], hi / total[:, None]
    _store_head(OUT, lo, hi, COS, SIN, start, stop, tl.num_programs(1) * D, D, LO, HI, BLOCK_M, False)
    tl.store(LSE + head * num_tokens + row, (top + tl.log2(total)) / LOG2E, mask=row < stop)


# --- backward --------------------------------------------------------------------------------------------------------


@triton.jit
def _query_gradient(
    lo, hi, q_lo, q_hi, g_lo, g_hi, lse, mean, row, K, V, prompt, num_prompt, prompt_end, own, num_own, own_end,
    k_row, v_row, scale,
    D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, N: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Add what blocks of keys, as in `_attend`, give to the gradient [M, LO], [M, HI] of a tile of queries."""
    for block in tl.range(0, num_prompt + num_own):
        start = tl.where(block < num_prompt, prompt + block * N, own + (block - num_prompt) * N)
        limit = tl.where(block < num_prompt, prompt_end, own_end)
        k_lo, k_hi = _load_head(K, start, limit, k_row, D, LO, HI, N, MASKED)
        v_lo, v_hi = _load_head(V, start, limit, v_row, D, LO, HI, N, MASKED)
        scores = _products(q_lo, q_hi, k_lo, k_hi, HI)  # [M, N]
        if MASKED:
            scores = _visible(scores, row, start, limit, N, CAUSAL)
        weights = tl.exp2(scores * scale - lse[:, None])
        slopes = weights * (_products(g_lo, g_hi, v_lo, v_hi, HI) - mean[:, None])  # [M, N]
        lo, hi = _add_product(lo, hi, slopes, k_lo, k_hi, HI)
    return lo, hi


@triton.jit
def _backward_query(
    Q, K, V, OUT, GRAD, LSE, MEAN, DQ, SEQLENS, PROMPTS, COS, SIN, num_tokens, num_segments,
    q_row, q_head, k_row, k_head, v_row, v_head, g_row, g_head, scale,
    GROUP: tl.constexpr, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, CAUSAL: tl.constexpr,
    PREFIX: tl.constexpr, ROTARY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: dQ of BLOCK_M queries of one segment and head; leaves each row's sum of GRAD * OUT in MEAN.

    With ROTARY, Q and K are turned already and lie as interleaved pairs.
    """
    tile = tl.program_id(0)
    if CAUSAL:
        tile = tl.num_programs(0) - 1 - tile
    segment, first, stop, start = _tile(tile, SEQLENS, num_segments, BLOCK_M)
    if start >= stop:
        return
    head = tl.program_id(1).to(tl.int64)
    out_row = tl.num_programs(1) * D
    k_row, v_row = k_row * 8, v_row * 8
    K += head // GROUP * k_head * 8
    V += head // GROUP * v_head * 8
    row = start + tl.arange(0, BLOCK_M)
    q_lo, q_hi = _load_head(Q + head * q_head * 8, start, stop, q_row * 8, D, LO, HI, BLOCK_M, True)
    g_lo, g_hi = _load_head(GRAD + head * g_head * 8, start, stop, g_row * 8, D, LO, HI, BLOCK_M, True)
    o_lo, o_hi = _load_head(OUT + head * D, start, stop, out_row, D, LO, HI, BLOCK_M, True)
    mean = tl.sum(g_lo.to(tl.float32) * o_lo, 1)
    if HI:
        mean += tl.sum(g_hi.to(tl.float32) * o_hi, 1)
    tl.store(MEAN + head * num_tokens + row, mean, mask=row < stop)
    lse = tl.load(LSE + head * num_tokens + row, mask=row < stop, other=0.0) * LOG2E
    lo = tl.zeros([BLOCK_M, LO], tl.float32)
    hi = tl.zeros([BLOCK_M, 16], tl.float32)

    own_whole, own_rest, own_edge = _blocks(
        first, start if CAUSAL else stop, tl.minimum(start + BLOCK_M, stop) if CAUSAL else stop, BLOCK_N
    )
    prompt, prompt_end, prompt_whole, prompt_rest, prompt_edge = 0, 0, 0, 0, 0
    if PREFIX:
        prompt, prompt_end = _prompt(segment, SEQLENS, PROMPTS)
        prompt_whole, prompt_rest, prompt_edge = _blocks(prompt, prompt_end, prompt_end, BLOCK_N)
    lo, hi = _query_gradient(
        lo, hi, q_lo, q_hi, g_lo, g_hi, lse, mean, row, K, V, prompt, prompt_whole, prompt_end, first, own_whole, stop,
        k_row, v_row, scale, D, LO, HI, BLOCK_N, False, False,
    )  # fmt: skip
    lo, hi = _query_gradient(
        lo, hi, q_lo, q_hi, g_lo, g_hi, lse, mean, row, K, V, prompt_rest, prompt_edge, prompt_end, own_rest, own_edge,
        stop, k_row, v_row, scale, D, LO, HI, BLOCK_N, True, CAUSAL,
    )  # fmt: skip
    natural = scale / LOG2E
    _store_head(DQ + head * D, lo * natural, hi * natural, COS, SIN, start, stop, out_row, D, LO, HI, BLOCK_M, ROTARY)


@triton.jit
def _key_gradient(
    dk_lo, dk_hi, dv_lo, dv_hi, k_lo, k_hi, v_lo, v_hi, column, Q, GRAD, LSE, MEAN, begin, num_blocks, tail, num_tail,
    limit, q_row, g_row, scale,
    D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, M: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Add what blocks of queries give to the gradients [N, LO], [N, HI] of a tile of keys and values."""
    for block in tl.range(0, num_blocks + num_tail):
        start = tl.where(block < num_blocks, begin + block * M, tail)
        row = start + tl.arange(0, M)
        inside = row < limit if MASKED else row >= 0
        q_lo, q_hi = _load_head(Q, start, limit, q_row, D, LO, HI, M, MASKED)
        g_lo, g_hi = _load_head(GRAD, start, limit, g_row, D, LO, HI, M, MASKED)
        lse = tl.load(LSE + row, mask=inside, other=0.0) * LOG2E
        mean = tl.load(MEAN + row, mask=inside, other=0.0)
        scores = _products(k_lo, k_hi, q_lo, q_hi, HI)  # [N, M]
        if CAUSAL:
            scores = tl.where(column[:, None] <= row[None, :], scores, float("-inf"))
        weights = tl.exp2(scores * scale - lse[None, :])  # rows from `limit` on: 1, times a gradient of 0
        dv_lo, dv_hi = _add_product(dv_lo, dv_hi, weights, g_lo, g_hi, HI)
        slopes = weights * (_products(v_lo, v_hi, g_lo, g_hi, HI) - mean[None, :])  # [N, M]
        dk_lo, dk_hi = _add_product(dk_lo, dk_hi, slopes, q_lo, q_hi, HI)
    return dk_lo, dk_hi, dv_lo, dv_hi


@triton.jit
def _backward_key(
    Q, K, V, GRAD, LSE, MEAN, DK, DV, SEQLENS, PROMPTS, COS, SIN, num_tokens, num_segments,
    q_row, q_head, k_row, k_head, v_row, v_head, g_row, g_head, scale,
    GROUP: tl.constexpr, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, CAUSAL: tl.constexpr,
    PREFIX: tl.constexpr, ROTARY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: dK and dV of BLOCK_N keys of one segment and key head, over all query heads that read it."""
    tile = tl.program_id(0)  # early tiles are seen by most queries: they begin
    segment, first, stop, start = _tile(tile, SEQLENS, num_segments, BLOCK_N)
    if start >= stop:
        return
    kv_head = tl.program_id(1).to(tl.int64)
    out_row = tl.num_programs(1) * D
    q_row, g_row = q_row * 8, g_row * 8
    column = start + tl.arange(0, BLOCK_N)
    k_lo, k_hi = _load_head(K + kv_head * k_head * 8, start, stop, k_row * 8, D, LO, HI, BLOCK_N, True)
    v_lo, v_hi = _load_head(V + kv_head * v_head * 8, start, stop, v_row * 8, D, LO, HI, BLOCK_N, True)
    dk_lo = tl.zeros([BLOCK_N, LO], tl.float32)
    dv_lo = tl.zeros([BLOCK_N, LO], tl.float32)
    dk_hi = tl.zeros([BLOCK_N, 16], tl.float32)
    dv_hi = tl.zeros([BLOCK_N, 16], tl.float32)
    last = stop
    if PREFIX:
        last = _last_query(segment, stop, SEQLENS, PROMPTS, num_segments)
    # Blocks of queries that overlap this tile, those that all see it whole, and the ragged end.
    num_edge, begin = 0, first
    if CAUSAL:
        num_edge = (tl.minimum(start + BLOCK_N, last) - start + BLOCK_M - 1) // BLOCK_M
        begin = tl.minimum(start + num_edge * BLOCK_M, last)
    num_whole, tail, num_tail = _blocks(begin, last, last, BLOCK_M)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        q = Q + head * q_head * 8
        g = GRAD + head * g_head * 8
        lse = LSE + head * num_tokens
        mean = MEAN + head * num_tokens
        dk_lo, dk_hi, dv_lo, dv_hi = _key_gradient(
            dk_lo, dk_hi, dv_lo, dv_hi, k_lo, k_hi, v_lo, v_hi, column, q, g, lse, mean, begin, num_whole, 0, 0,
            last, q_row, g_row, scale, D, LO, HI, BLOCK_M, False, False,
        )  # fmt: skip
        dk_lo, dk_hi, dv_lo, dv_hi = _key_gradient(
            dk_lo, dk_hi, dv_lo, dv_hi, k_lo, k_hi, v_lo, v_hi, column, q, g, lse, mean, start, num_edge, tail,
            num_tail, last, q_row, g_row, scale, D, LO, HI, BLOCK_M, True, CAUSAL,
        )  # fmt: skip
    natural = scale / LOG2E
    _store_head(DV + kv_head * D, dv_lo, dv_hi, COS, SIN, start, stop, out_row, D, LO, HI, BLOCK_N, False)
    _store_head(
        DK + kv_head * D, dk_lo * natural, dk_hi * natural, COS, SIN, start, stop, out_row, D, LO, HI, BLOCK_N, ROTARY
    )


@triton.jit
def _rotate(
    X, OUT, COS, SIN, num_tokens, x_row, x_head, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_ROWS tokens of one head, turned and stored as interleaved pairs."""
    start = tl.program_id(0) * BLOCK_ROWS
    head = tl.program_id(1).to(tl.int64)
    out_row = tl.num_programs(1) * D
    lo, hi = _load_head_turned(X + head * x_head * 8, COS, SIN, start, num_tokens, x_row * 8, D, LO, HI, BLOCK_ROWS)
    _store_head(OUT + head * D, lo, hi, COS, SIN, start, num_tokens, out_row, D, LO, HI, BLOCK_ROWS, False)

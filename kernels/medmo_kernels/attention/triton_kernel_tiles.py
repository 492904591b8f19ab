"""Tiles of packed attention: which rows a program works on, how it reads and writes them, and their products.

The functions that the forward and backward kernels share; see `triton_kernel.py`.
"""

# Triton takes plain values where its annotations say constexpr.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def find_tile(tile, SEQLENS, num_segments, num_tokens, BLOCK: tl.constexpr):
    """Return the segment that owns a tile number, its first and last token, and where the tile starts.

    The segment is the last one whose first tile is not beyond this one. Wrong boundaries lead to no token that is not
    there.
    """
    started = 0
    for chunk in range(0, num_segments, 128):
        other = chunk + tl.arange(0, 128)
        inside = other < num_segments
        first = tl.load(SEQLENS + other, mask=inside, other=0) // BLOCK + other
        started += tl.sum(((first <= tile) & inside).to(tl.int32), 0)
    segment = tl.maximum(started - 1, 0)
    begin = tl.load(SEQLENS + segment)
    end = tl.load(SEQLENS + segment + 1)
    first = tl.maximum(begin, 0)
    start = first + tl.maximum(tile - begin // BLOCK - segment, 0) * BLOCK
    return segment, first, tl.minimum(end, num_tokens), start


@triton.jit
def find_prompt(segment, SEQLENS, PROMPTS, num_segments, num_tokens):
    """Return where a segment's prompt begins and ends; nothing lies between where it has none, or one not there."""
    prompt = tl.load(PROMPTS + segment)
    known = tl.where((prompt >= 0) & (prompt < num_segments), prompt, 0)
    begin = tl.maximum(tl.load(SEQLENS + known), 0)
    end = tl.minimum(tl.load(SEQLENS + known + 1), num_tokens)
    return begin, tl.where(prompt == known, end, begin)


@triton.jit
def count_blocks(begin, seen, end, N: tl.constexpr):
    """Return how many blocks from `begin` on end by `seen`, where the rest begins, and in how many it reaches `end`."""
    whole = (seen - begin) // N
    rest = begin + whole * N
    return whole, rest, (end - rest + N - 1) // N


@triton.jit
def block_at(block, prompt, num_prompt, prompt_end, own, own_end, N: tl.constexpr):
    """Return where a block of keys starts, and where its span ends: blocks of the prompt come before the own ones."""
    of_prompt = block < num_prompt
    start = tl.where(of_prompt, prompt + block * N, own + (block - num_prompt) * N)
    return start, tl.where(of_prompt, prompt_end, own_end)


@triton.jit
def last_query(segment, end, SEQLENS, PROMPTS, num_segments, num_tokens):
    """Return where the tokens end that see a segment: behind its last branch, or at its own end.

    Branches lie directly behind their prompt, so the tokens that see a key are one stretch in every case.
    """
    last = end
    for chunk in range(0, num_segments, 128):
        other = chunk + tl.arange(0, 128)
        prompt = tl.load(PROMPTS + other, mask=other < num_segments, other=-1)
        last = tl.maximum(last, tl.max(tl.load(SEQLENS + other + 1, mask=prompt == segment, other=0), 0))
    return tl.minimum(last, num_tokens)


@triton.jit
def _block(X, start, limit, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Return the places of columns FIRST .. FIRST + WIDTH of the rows from `start`, and the rows and columns."""
    row = tl.arange(0, ROWS)
    column = FIRST + tl.arange(0, WIDTH)
    places = X + tl.cast(start, tl.int64) * stride + row[:, None] * stride + column[None, :]  # [ROWS, WIDTH]
    return places, (start + row < limit)[:, None], column[None, :]


@triton.jit
def load_columns(
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
    cos = load_columns(COS, start, limit, D // 2, D // 2, FIRST // 2, WIDTH // 2, ROWS, True)
    sin = load_columns(SIN, start, limit, D // 2, D // 2, FIRST // 2, WIDTH // 2, ROWS, True)
    first = load_columns(X, start, limit, stride, D // 2, FIRST // 2, WIDTH // 2, ROWS, True).to(tl.float32)
    second = load_columns(X + D // 2, start, limit, stride, D // 2, FIRST // 2, WIDTH // 2, ROWS, True).to(tl.float32)
    return tl.interleave(first * cos - second * sin, second * cos + first * sin).to(X.dtype.element_ty)


@triton.jit
def _store_turned_back(
    X, x, COS, SIN, start, limit, stride, D: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """Turn a gradient [ROWS, WIDTH] of interleaved pairs back and write it in the tensor's own order of columns."""
    cos = load_columns(COS, start, limit, D // 2, D // 2, FIRST // 2, WIDTH // 2, ROWS, True)
    sin = load_columns(SIN, start, limit, D // 2, D // 2, FIRST // 2, WIDTH // 2, ROWS, True)
    first, second = tl.split(tl.reshape(x, (ROWS, WIDTH // 2, 2)))
    _store(X, first * cos + second * sin, start, limit, stride, D // 2, FIRST // 2, WIDTH // 2, ROWS)
    _store(X + D // 2, second * cos - first * sin, start, limit, stride, D // 2, FIRST // 2, WIDTH // 2, ROWS)


@triton.jit
def load_head(
    X, start, limit, stride, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Load whole rows: [ROWS, LO] and [ROWS, HI], the second meaningless where HI is 0."""
    lo = load_columns(X, start, limit, stride, D, 0, LO, ROWS, MASKED)
    hi = lo
    if HI:
        hi = load_columns(X, start, limit, stride, D, LO, HI, ROWS, MASKED)
    return lo, hi


@triton.jit
def load_head_turned(
    X, COS, SIN, start, limit, stride, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr
):
    """Load a tile of heads, turned: [ROWS, LO] and [ROWS, HI]; without HI the second means nothing."""
    lo = _load_turned(X, COS, SIN, start, limit, stride, D, 0, LO, ROWS)
    hi = lo
    if HI:
        hi = _load_turned(X, COS, SIN, start, limit, stride, D, LO, HI, ROWS)
    return lo, hi


@triton.jit
def store_head(
    X, lo, hi, COS, SIN, start, limit, stride, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr,
    TURN_BACK: tl.constexpr,
):  # fmt: skip
    """Write a tile of heads, turned back where TURN_BACK."""
    if TURN_BACK:
        _store_turned_back(X, lo, COS, SIN, start, limit, stride, D, 0, LO, ROWS)
        if HI:
            _store_turned_back(X, hi, COS, SIN, start, limit, stride, D, LO, HI, ROWS)
    else:
        _store(X, lo, start, limit, stride, D, 0, LO, ROWS)
        if HI:
            _store(X, hi, start, limit, stride, D, LO, HI, ROWS)


@triton.jit
def begin_products(
    a_lo, a_hi, B, start, limit, stride, D: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, ROWS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Return a b^T of a block of rows b, over the columns HI alone where there are any: [M, ROWS] fp32.

    Where the same pass of a loop reads a product, Triton empties the queue of the matrix units behind it; one that only
    the next pass reads may stay in the queue. So a pass begins the products of the next block behind its own last one.
    """
    if HI:
        b = load_columns(B, start, limit, stride, D, LO, HI, ROWS, MASKED)
        return tl.dot(a_hi, tl.trans(b), input_precision="tf32x3")
    else:
        b = load_columns(B, start, limit, stride, D, 0, LO, ROWS, MASKED)
        return tl.dot(a_lo, tl.trans(b), input_precision="tf32x3")


@triton.jit
def end_products(begun, a_lo, b_lo):
    """Return a b^T over all columns, of which HI are `begun`: [M, ROWS] fp32."""
    return tl.dot(a_lo, tl.trans(b_lo), begun, input_precision="tf32x3")


@triton.jit
def products(a, b):
    """Return a b^T of the columns at hand: [ROWS of a, ROWS of b] fp32."""
    return tl.dot(a, tl.trans(b), input_precision="tf32x3")


@triton.jit
def add_product(lo, hi, weights, x_lo, x_hi, HI: tl.constexpr):
    """Return (lo, hi) + weights x: [M, LO] and [M, HI] fp32."""
    weights = weights.to(x_lo.dtype)
    lo = tl.dot(weights, x_lo, lo, input_precision="tf32x3")
    if HI:
        hi = tl.dot(weights, x_hi, hi, input_precision="tf32x3")
    return lo, hi


@triton.jit
def hide_unseen(scores, row, start, limit, N: tl.constexpr, CAUSAL: tl.constexpr):
    """Return [M, N] scores with -inf for keys from `limit` on, and with CAUSAL for those behind their row."""
    column = start + tl.arange(0, N)
    visible = (column < limit)[None, :]
    if CAUSAL:
        visible = visible & (column[None, :] <= row[:, None])
    return tl.where(visible, scores, float("-inf"))

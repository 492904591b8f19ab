"""Patch embedding in Triton: uint8 pixels to tokens, and the gradient of the position table.

Shapes: N patches, K values of a patch, D embedding width, S entries along a side of the position table, C = 3 channels,
T temporal taps of the weights, P pixels of a patch in one channel and frame.

Forward, one 1280 x 1280 image of the 8B tower (N = 6,400, K = 768, D = 1,152): 11.3 GFLOP, 21 MB: at least 14 us on an
H200, a floor by operations that was not measured. What decides the speed beside the matrix instructions:

- Pixels are read as words of four. Bytes 0 and 2 of every word of a tile, then bytes 1 and 3, make a stretch of K each,
  which is the layout that matrix instructions want in registers: 16-byte copies from memory, 16-byte reads from shared
  memory, no exchange between threads. `pack_kernel` brings the weights into the same order (and sums taps, and folds
  channel scales and offsets) in a pass over 2 to 4 MB before.
- Bytes become floats by arithmetic on bits, two at a time (`centred`), and every tile of columns converts its pixels
  anew. That needs fp16, whose mantissa has room for a byte: in bf16 the same takes twice the instructions. Packed
  weights are fp16 too, each column scaled by its own power of two, so that those of bf16 lose nothing: u - 128 is
  exact, and only the rounding of summed weights and of the result remains.
- Scale, bias and positions come last, a quarter of a tile at a time: the four taps of a whole tile beside a full set of
  sums take more than the 128 registers with which two blocks share a multiprocessor.
- Programs of one stretch of rows follow each other: pixels come from L2 after the first, and the table rows that
  neighbouring patches share from L1.

Counted in what triton 3.9 compiles for sm_90 (8B), a tile of 128 x 128 takes 178 + 12 x 145 + 1,085 instructions a warp
(before, in, after the loop): 6,006 cycles of issue for each quarter of a multiprocessor beside 6,144 of its matrix
instructions.

Gradient of the table, same image: every patch's gradient row is read by four entries, 59 MB of L2 traffic over 15 MB of
memory, at least 4 us, beside the launches that sort the taps by entry (neither measured). One program owns an entry and
sums its taps in their order: no atomics, equal bit for bit in every run. The gradient of the weights is no kernel of
ours (see `op.py`).
"""
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# Triton's launch options and compile-time constants are unknown to type checkers.

import triton
import triton.language as tl


@triton.jit
def centred(words, FIRST: tl.constexpr, DTYPE: tl.constexpr):
    """Return u - 128 for bytes FIRST and FIRST + 2 of every word: [..., 2] in DTYPE, which holds it exactly.

    A byte put at the lowest mantissa bits of a power of two adds itself: 0x6400 is 1024 in fp16, whose last bit is
    worth 1; 0x47000000 is 2 ** 15 in fp32, whose bit 8 is.
    """
    pair = (words >> 8 * FIRST) & 0x00FF00FF
    if DTYPE.primitive_bitwidth == 16:  # two at once: the compiler keeps both halves in one register
        pair |= 0x64006400
        low = pair.to(tl.int16).to(DTYPE, bitcast=True) - 1152.0
        high = (pair >> 16).to(tl.int16).to(DTYPE, bitcast=True) - 1152.0
    else:
        low = (((pair << 8) & 0xFF00) | 0x47000000).to(DTYPE, bitcast=True) - 32896.0
        high = ((pair >> 8) | 0x47000000).to(DTYPE, bitcast=True) - 32896.0
    return tl.join(low, high)


@triton.jit
def along(place, SIDE: tl.constexpr):
    """Return the lower of the two entries around a place on one axis of the table, and the weight of the upper one.

    A place beyond the table is one on its edge. NaN becomes an entry too, with a weight of NaN.
    """
    place = tl.maximum(place, 0.0, propagate_nan=tl.PropagateNan.ALL)
    place = tl.minimum(place, SIDE - 1.0, propagate_nan=tl.PropagateNan.ALL)
    lower = tl.minimum(tl.floor(place), max(SIDE - 2, 0))
    return lower.to(tl.int32), place - lower


@triton.jit
def bilinear(coordinates, rows, SIDE: tl.constexpr):
    """Return, per patch, the entry of the upper left tap, and the weights of the taps below and beside it."""
    top, low = along(tl.load(coordinates + 2 * rows), SIDE)
    left, across = along(tl.load(coordinates + 2 * rows + 1), SIDE)
    return top * SIDE + left, low, across


@triton.jit
def of_columns(at, real, WHOLE: tl.constexpr):
    """Load what stands at columns, in fp32. Without a mask where tiles divide the width: no register is zeroed."""
    if WHOLE:
        return tl.load(at).to(tl.float32)
    else:
        return tl.load(at, mask=real, other=0.0).to(tl.float32)


@triton.jit
def finish(
    product, factors, table, out, rows, entry, low, across, columns, num_rows,
    EMBED_DIM: tl.constexpr, SIDE: tl.constexpr, HAS_POSITIONS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Scale a part of the product, add bias and positions, and store it."""
    columns = columns[None, :]
    real = columns < EMBED_DIM
    total = product * of_columns(factors + columns, real, WHOLE)
    total += of_columns(factors + (columns + EMBED_DIM), real, WHOLE)
    if HAS_POSITIONS:
        # From an entry to its neighbours are constants: one address serves four taps.
        aside: tl.constexpr = EMBED_DIM if SIDE > 1 else 0
        down: tl.constexpr = SIDE * EMBED_DIM if SIDE > 1 else 0
        at = table + (entry[:, None] * EMBED_DIM + columns)
        total += ((1 - low) * (1 - across))[:, None] * of_columns(at, real, WHOLE)
        total += ((1 - low) * across)[:, None] * of_columns(at + aside, real, WHOLE)
        total += (low * (1 - across))[:, None] * of_columns(at + down, real, WHOLE)
        total += (low * across)[:, None] * of_columns(at + (down + aside), real, WHOLE)
    at = out + rows.to(tl.int64)[:, None] * EMBED_DIM + columns
    tl.store(at, total.to(out.dtype.element_ty), mask=(rows < num_rows)[:, None] & real)


@triton.jit
def finish_rows(
    product, factors, table, coordinates, out, rows, first_column, num_rows,
    EMBED_DIM: tl.constexpr, SIDE: tl.constexpr, HAS_POSITIONS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Finish some rows of a tile: the left columns, then the right ones, which share the places in the table."""
    half: tl.constexpr = BLOCK_N // 2
    whole: tl.constexpr = EMBED_DIM % BLOCK_N == 0
    entry, low, across = rows, 0.0, 0.0
    if HAS_POSITIONS:
        entry, low, across = bilinear(coordinates, tl.minimum(rows, num_rows - 1), SIDE)
    left, right = tl.split(product.reshape(product.shape[0], 2, half).permute(0, 2, 1))
    columns = first_column + tl.arange(0, half)
    finish(
        left, factors, table, out, rows, entry, low, across, columns, num_rows,
        EMBED_DIM, SIDE, HAS_POSITIONS, whole,
    )  # fmt: skip
    finish(
        right, factors, table, out, rows, entry, low, across, columns + half, num_rows,
        EMBED_DIM, SIDE, HAS_POSITIONS, whole,
    )  # fmt: skip


@triton.jit
def pack_kernel(
    weight, bias, packed, factors, scale,
    ratio_0, ratio_1, ratio_2, shift_0, shift_1, shift_2,
    TAPS: tl.constexpr, FOLDS: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr, PACKED_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fold one output column's weights: [C, T, P] to PACKED_WIDTH values in the order in which pixels are read.

    A tile of BLOCK_K values holds bytes 0 and 2 of its words, then bytes 1 and 3; the words of each half are taken four
    apart (0, 4, 8, .., 1, 5, ..). FOLDS: stills, whose taps are summed. `factors`: [2, D] in fp32, what a column of the
    product is multiplied by and its bias, which takes up what means other than that of a pixel of 128 add.
    """
    column = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    within = place % BLOCK_K
    number = within % (BLOCK_K // 2) // 2  # which word, in the order of the product
    word = 4 * (number % (BLOCK_K // 16)) + number // (BLOCK_K // 16)
    value = place - within + 4 * word + 2 * (within % 2) + within // (BLOCK_K // 2)  # of the patch, in its own order
    real = (place < PACKED_WIDTH) & (value < WIDTH)
    frames: tl.constexpr = 1 if FOLDS else TAPS
    channel = value // (frames * PIXELS)
    at = weight + column * (3 * TAPS * PIXELS) + channel * (TAPS * PIXELS) + value % (frames * PIXELS)
    total = tl.load(at, mask=real, other=0.0).to(tl.float32)
    if FOLDS:
        for tap in tl.static_range(1, TAPS):
            total += tl.load(at + tap * PIXELS, mask=real, other=0.0).to(tl.float32)
    ratio = tl.where(channel == 0, ratio_0, tl.where(channel == 1, ratio_1, ratio_2))
    shift = tl.where(channel == 0, shift_0, tl.where(channel == 1, shift_1, shift_2))
    offset = tl.sum(total * shift, axis=0)
    if HAS_BIAS:
        offset += tl.load(bias + column).to(tl.float32)
    # By a power of two, from 2 ** (exponent - 127): the largest value comes to lie between 2 ** 14 and 2 ** 15.
    total *= ratio
    exponent = tl.max(tl.abs(total), axis=0).to(tl.int32, bitcast=True) >> 23
    exponent = tl.minimum(tl.maximum(exponent, 15), 253)
    total *= ((254 + 14 - exponent) << 23).to(tl.float32, bitcast=True)
    tl.store(packed + column * PACKED_WIDTH + place, total.to(packed.dtype.element_ty), mask=place < PACKED_WIDTH)
    tl.store(factors + column, scale * ((exponent - 14) << 23).to(tl.float32, bitcast=True))
    tl.store(factors + tl.num_programs(0) + column, offset)


@triton.jit(do_not_specialize=["num_rows"])
def forward_kernel(
    words, packed, factors, table, coordinates, out, num_rows,
    NUM_WORDS: tl.constexpr, EMBED_DIM: tl.constexpr, SIDE: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    JOINED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute (pixels - 128) @ packed.T, scaled, + bias + positions for one tile of the output.

    JOINED: one product of BLOCK_K values a turn, else two of BLOCK_K / 2 (before Hopper joining costs an exchange).
    """
    block_w: tl.constexpr = BLOCK_K // 4
    packed_width: tl.constexpr = (NUM_WORDS + block_w - 1) // block_w * BLOCK_K
    num_tiles: tl.constexpr = (EMBED_DIM + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0)
    first_row, first_column = tile // num_tiles * BLOCK_M, tile % num_tiles * BLOCK_N
    # Rows and columns past the end repeat the last one: copies need no mask, and nothing of them is stored.
    rows = tl.minimum(first_row + tl.arange(0, BLOCK_M), num_rows - 1).to(tl.int64)  # [M]
    columns = tl.minimum(first_column + tl.arange(0, BLOCK_N), EMBED_DIM - 1)  # [N]
    index = tl.arange(0, block_w)  # [W]
    words_at = words + rows[:, None] * NUM_WORDS + index[None, :]  # [M, W]
    packed_at = packed + columns[:, None] * packed_width  # [N, 1]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, NUM_WORDS, block_w):
        # No mask along a row where tiles divide it: 16 bytes a copy. Words beyond it meet weights of 0.
        if NUM_WORDS % block_w == 0:
            word = tl.load(words_at + start)
        else:
            word = tl.load(words_at + start, mask=index[None, :] < NUM_WORDS - start, other=0)
        if JOINED:
            weights = tl.load(packed_at + 4 * start + tl.arange(0, BLOCK_K)[None, :])  # [N, K]
            pixels = tl.join(centred(word, 0, weights.dtype), centred(word, 1, weights.dtype))  # [M, W, 2, 2]
            pixels = pixels.reshape(BLOCK_M, block_w // 4, 4, 2, 2).permute(0, 4, 2, 1, 3).reshape(BLOCK_M, BLOCK_K)
            total = tl.dot(pixels, weights.T, total, input_precision="ieee")
        else:
            for first in tl.static_range(2):
                at = packed_at + 4 * start + first * (BLOCK_K // 2) + tl.arange(0, BLOCK_K // 2)[None, :]
                weights = tl.load(at)  # [N, K / 2]
                pixels = centred(word, first, weights.dtype).reshape(BLOCK_M, block_w // 4, 4, 2)
                pixels = pixels.permute(0, 2, 1, 3).reshape(BLOCK_M, BLOCK_K // 2)
                total = tl.dot(pixels, weights.T, total, input_precision="ieee")
    # In four parts: fewer taps are alive at a time beside the sums. Eight rows and eight rows are what a thread of the
    # product holds, so that parting them moves nothing.
    upper, lower = tl.split(total.reshape(BLOCK_M // 16, 2, 8, BLOCK_N).permute(0, 2, 3, 1))
    index = tl.arange(0, BLOCK_M // 2)
    rows = first_row + index // 8 * 16 + index % 8
    upper, lower = upper.reshape(BLOCK_M // 2, BLOCK_N), lower.reshape(BLOCK_M // 2, BLOCK_N)
    finish_rows(
        upper, factors, table, coordinates, out, rows, first_column, num_rows,
        EMBED_DIM, SIDE, HAS_POSITIONS, BLOCK_N,
    )  # fmt: skip
    finish_rows(
        lower, factors, table, coordinates, out, rows + 8, first_column, num_rows,
        EMBED_DIM, SIDE, HAS_POSITIONS, BLOCK_N,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def taps_kernel(coordinates, entries, weights, num_rows, SIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Write the four table entries of every patch and their weights, both [N, 4]."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < num_rows
    entry, low, across = bilinear(coordinates, tl.minimum(rows, num_rows - 1), SIDE)
    beside: tl.constexpr = 1 if SIDE > 1 else 0
    below: tl.constexpr = SIDE * beside
    tl.store(entries + 4 * rows, entry, mask=inside)
    tl.store(entries + 4 * rows + 1, entry + beside, mask=inside)
    tl.store(entries + 4 * rows + 2, entry + below, mask=inside)
    tl.store(entries + 4 * rows + 3, entry + below + beside, mask=inside)
    tl.store(weights + 4 * rows, (1 - low) * (1 - across), mask=inside)
    tl.store(weights + 4 * rows + 1, (1 - low) * across, mask=inside)
    tl.store(weights + 4 * rows + 2, low * (1 - across), mask=inside)
    tl.store(weights + 4 * rows + 3, low * across, mask=inside)


@triton.jit
def table_gradient_kernel(
    grad, order, weights, offsets, out, EMBED_DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Sum, for one entry of the table, the gradients of the patches that read it, in the order of the patches."""
    entry = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    real = columns < EMBED_DIM
    first, last = tl.load(offsets + entry), tl.load(offsets + entry + 1)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for start in range(first, last, BLOCK_T):
        index = start + tl.arange(0, BLOCK_T)  # [T]
        inside = index < last
        tap = tl.load(order + index, mask=inside, other=0)
        weight = tl.load(weights + tap, mask=inside, other=0.0)
        at = grad + (tap // 4)[:, None] * EMBED_DIM + columns[None, :]  # [T, N]
        row = tl.load(at, mask=inside[:, None] & real[None, :], other=0.0)
        total += tl.sum(weight[:, None] * row.to(tl.float32), axis=0)
    tl.store(out + entry.to(tl.int64) * EMBED_DIM + columns, total.to(out.dtype.element_ty), mask=real)

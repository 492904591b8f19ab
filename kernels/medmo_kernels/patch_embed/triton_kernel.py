"""Patch embedding in Triton: uint8 pixels to tokens in one launch, and the gradient of the position table.

Shapes: N patches, K values of a patch, D embedding width, S entries along a side of the position table, C = 3 channels,
T temporal taps of the weights, P pixels of a patch in one channel and frame.

Forward, one 1280 x 1280 image of the 8B tower (N = 6,400, K = 768, D = 1,152): 11.3 GFLOP, 21 MB: at least 14 us on an
H200, a floor by operations that was not measured. What decides the speed beside the matrix instructions:

- Pixels are read as words of four. Byte b of every word of a tile makes one stretch of K, which is the layout that
  matrix instructions want in registers: 16-byte copies from memory, 8-byte reads from shared memory, no exchange
  between threads. `pack_kernel` brings the weights into the same order (and sums taps, and folds channel scales and
  offsets) in a pass over 2 to 4 MB before.
- Bytes become floats by arithmetic on bits (`centred`): conversion instructions have a quarter of the rate, and every
  tile of columns converts its pixels anew. u - 127.5 has 8 significant bits: exact in bf16, and zero offset where the
  mean is 0.5, so only the rounding of the weights and of the result remains.
- Accumulators start from bias and positions. Added at the end instead, the four gathers would be alive beside a full
  set of sums: 184 registers instead of at most 128, one block on a multiprocessor instead of two.
- Programs of one stretch of rows follow each other: pixels come from L2 after the first, and the table rows that
  neighbouring patches share from L1.

Gradient of the table, same image: every patch's gradient row is read by four entries, 59 MB of L2 traffic over 15 MB of
memory, at least 4 us, beside the launches that sort the taps by entry (neither measured). One program owns an entry and
sums its taps in their order: no atomics, equal bit for bit in every run. The gradient of the weights is no kernel of
ours (see `op.py`).
"""
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton's launch options and compile-time constants are unknown to type checkers.

import triton
import triton.language as tl


@triton.jit
def centred(words, INDEX: tl.constexpr):
    """Return u - 127.5 in fp32 for byte u number INDEX of every word.

    The bits 0x47000000 are 2 ** 15, whose last mantissa bit is worth 2 ** -8: a byte put at bit 8 adds itself.
    """
    if INDEX == 0:
        byte = words << 8
    else:
        byte = words >> (8 * INDEX - 8)
    return ((byte & 0xFF00) | 0x47000000).to(tl.float32, bitcast=True) - 32895.5


@triton.jit
def bilinear(coordinates, rows, inside, SIDE: tl.constexpr):
    """Return, per patch, the entry of the upper left tap, the steps to the taps below and beside, two fractions."""
    row = tl.load(coordinates + 2 * rows, mask=inside, other=0.0)
    column = tl.load(coordinates + 2 * rows + 1, mask=inside, other=0.0)
    row_low, column_low = tl.floor(row), tl.floor(column)
    # A place beyond the table is one on its edge, whose two taps are the same entry; so is the last row or column.
    # NaN becomes an entry too, with a weight of NaN.
    top = tl.minimum(tl.maximum(row_low, 0.0), SIDE - 1).to(tl.int32)
    left = tl.minimum(tl.maximum(column_low, 0.0), SIDE - 1).to(tl.int32)
    below = tl.where((row >= 0) & (row_low < SIDE - 1), SIDE, 0)
    beside = tl.where((column >= 0) & (column_low < SIDE - 1), 1, 0)
    return top * SIDE + left, below, beside, row - row_low, column - column_low


@triton.jit
def bias_and_positions(
    bias, table, coordinates, rows, columns, num_rows, EMBED_DIM: tl.constexpr, SIDE: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
):  # fmt: skip
    """Return what the product is added to: [rows, columns] in fp32."""
    inside, real = rows < num_rows, columns < EMBED_DIM
    total = tl.zeros((rows.shape[0], columns.shape[0]), dtype=tl.float32)
    total += tl.load(bias + columns, mask=real, other=0.0)[None, :]
    if HAS_POSITIONS:
        both = inside[:, None] & real[None, :]
        entry, below, beside, low, across = bilinear(coordinates, rows, inside, SIDE)
        at = table + entry[:, None] * EMBED_DIM + columns[None, :]
        down, aside = below[:, None] * EMBED_DIM, beside[:, None] * EMBED_DIM
        total += ((1 - low) * (1 - across))[:, None] * tl.load(at, mask=both, other=0.0).to(tl.float32)
        total += ((1 - low) * across)[:, None] * tl.load(at + aside, mask=both, other=0.0).to(tl.float32)
        total += (low * (1 - across))[:, None] * tl.load(at + down, mask=both, other=0.0).to(tl.float32)
        total += (low * across)[:, None] * tl.load(at + down + aside, mask=both, other=0.0).to(tl.float32)
    return total


@triton.jit
def pack_kernel(
    weight, bias, packed, folded_bias,
    ratio_0, ratio_1, ratio_2, shift_0, shift_1, shift_2,
    TAPS: tl.constexpr, FOLDS: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr, PACKED_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fold one output column's weights: [C, T, P] to PACKED_WIDTH values in the order in which pixels are read.

    A tile of BLOCK_K values holds byte 0 of its words, then bytes 1, 2 and 3. FOLDS: stills, whose taps are summed.
    The fp32 bias takes up what means other than 0.5 add.
    """
    column = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    quarter: tl.constexpr = BLOCK_K // 4
    within = place % BLOCK_K
    value = place - within + 4 * (within % quarter) + within // quarter  # of the patch, in its own order
    real = value < WIDTH
    frames: tl.constexpr = 1 if FOLDS else TAPS
    channel = value // (frames * PIXELS)
    at = weight + column * (3 * TAPS * PIXELS) + channel * (TAPS * PIXELS) + value % (frames * PIXELS)
    total = tl.load(at, mask=real, other=0.0).to(tl.float32)
    if FOLDS:
        for tap in tl.static_range(1, TAPS):
            total += tl.load(at + tap * PIXELS, mask=real, other=0.0).to(tl.float32)
    ratio = tl.where(channel == 0, ratio_0, tl.where(channel == 1, ratio_1, ratio_2))
    shift = tl.where(channel == 0, shift_0, tl.where(channel == 1, shift_1, shift_2))
    tl.store(packed + column * PACKED_WIDTH + place, (total * ratio).to(packed.dtype.element_ty), place < PACKED_WIDTH)
    offset = tl.sum(total * shift, axis=0)
    if HAS_BIAS:
        offset += tl.load(bias + column).to(tl.float32)
    tl.store(folded_bias + column, offset)


@triton.jit(do_not_specialize=["num_rows"])
def forward_kernel(
    words, packed, bias, table, coordinates, out, scale, num_rows,
    NUM_WORDS: tl.constexpr, EMBED_DIM: tl.constexpr, SIDE: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    JOINED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute scale * (pixels - 127.5) @ weights.T + bias + positions for one tile of the output.

    JOINED: one product of BLOCK_K values a turn, else four of BLOCK_K / 4 (before Hopper joining costs an exchange).
    """
    block_w: tl.constexpr = BLOCK_K // 4
    half: tl.constexpr = BLOCK_M // 2
    packed_width: tl.constexpr = (NUM_WORDS + block_w - 1) // block_w * BLOCK_K
    num_tiles: tl.constexpr = (EMBED_DIM + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0)
    first = (tile // num_tiles).to(tl.int64) * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)  # [M]
    columns = (tile % num_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    inside, real = rows < num_rows, columns < EMBED_DIM
    # In two halves: fewer rows' places and fractions are alive at a time.
    upper = first + tl.arange(0, half)
    above = bias_and_positions(
        bias, table, coordinates, upper, columns, num_rows, EMBED_DIM, SIDE, HAS_POSITIONS
    )  # [M / 2, N]
    below = bias_and_positions(
        bias, table, coordinates, upper + half, columns, num_rows, EMBED_DIM, SIDE, HAS_POSITIONS
    )  # [M / 2, N]
    total = tl.join(above, below).permute(2, 0, 1).reshape(BLOCK_M, BLOCK_N) * (1 / scale)
    index = tl.arange(0, block_w)  # [W]
    words_at = words + rows[:, None] * NUM_WORDS + index[None, :]  # [M, W]
    for start in range(0, NUM_WORDS, block_w):
        # No mask along a row where tiles divide it: 16 bytes a copy. Words beyond it meet weights of 0.
        if NUM_WORDS % block_w == 0:
            word = tl.load(words_at + start, mask=inside[:, None], other=0)
        else:
            word = tl.load(words_at + start, mask=inside[:, None] & (index[None, :] < NUM_WORDS - start), other=0)
        packed_at = packed + columns[:, None] * packed_width + 4 * start  # [N, 1]
        if JOINED:
            weights = tl.load(packed_at + tl.arange(0, BLOCK_K)[None, :], mask=real[:, None], other=0.0)  # [N, K]
            even = tl.join(centred(word, 0).to(weights.dtype), centred(word, 2).to(weights.dtype))
            odd = tl.join(centred(word, 1).to(weights.dtype), centred(word, 3).to(weights.dtype))
            # [M, W, 2, 2], the last axis the lower bit of the byte's number: number first, then word.
            pixels = tl.join(even, odd).permute(0, 2, 3, 1).reshape(BLOCK_M, BLOCK_K)
            total = tl.dot(pixels, weights.T, total, input_precision="ieee")
        else:
            for byte in tl.static_range(4):
                at = packed_at + byte * block_w + index[None, :]
                weights = tl.load(at, mask=real[:, None], other=0.0)  # [N, W]
                pixels = centred(word, byte).to(weights.dtype)  # [M, W]
                total = tl.dot(pixels, weights.T, total, input_precision="ieee")
    at = out + rows[:, None] * EMBED_DIM + columns[None, :]
    tl.store(at, (total * scale).to(out.dtype.element_ty), mask=inside[:, None] & real[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def taps_kernel(coordinates, entries, weights, num_rows, SIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Write the four table entries of every patch and their weights, both [N, 4]."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < num_rows
    entry, below, beside, low, across = bilinear(coordinates, rows, inside, SIDE)
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

"""The projector in Triton: the first product of all mergers in one launch, erf-GELU in its epilogue.

Legend: G mergers of one tower, M tokens, CELLS = merge_size ** 2 patches a token, C a patch's width, D = CELLS * C the
merged width, H the hidden width, O the decoder's.

Counted for the 8B model (D = H = 4608, O = 4096) at M = 1,600 tokens, bf16, on an H200 (4.3 TB/s, 790 TFLOP/s). All
times are floors, bytes or operations over these rates; none was measured:

- Both products take 128 GFLOP = 162 us per merger; everything else that a merger moves unfused (normalised vectors
  written and read, pre-activation read and written) is 88 MB = 21 us. The most that fusing can buy is 1.13x, so each
  part is fused only where it is cheap. GELU hangs on accumulators that are in registers anyway; the whole epilogue is
  counted, as compiled for sm_90, at 4,678 cycles of issue a tile after 73,728 of matrix instructions: 6 % where nothing
  overlaps, half of what a separate pass costs. One launch for all mergers gains by M: at 1,024 tokens a merger's 144
  tiles of 128 x 256 take 2 waves of 132 processors for 1.09, four mergers' 576 take 5 for 4.36 (1.6x); at 1,600 it is 2
  for 1.77 and 8 for 7.09, no gain. Tiles of 128 x 128 would fill 14.2 of 15 there, but load 1.5x the bytes into shared
  memory, which then bounds them. The second product stays with cuBLAS: a merger's hidden rows are 1.2 MB per 128 tokens
  and fit no shared memory.
- The norm is a separate pass, 29 MB = 7 us. Normalising while loading repeats it for every column of tiles and drains
  the matrix units at each step: compiled for sm_90 that loop had 353 instructions a step against 71 without. The
  algebraic way round, rstd * (x @ W' - mean * sum(W')), subtracts two large numbers where the mean is not small beside
  the deviation, and W' = W * norm_weight must be rounded to 16 bits: not done.
- For the backward only the pre-activation is kept (M * H * 2 bytes; an unfused merger keeps three such tensors). The
  activation is recomputed in the pass that needs it anyway, and so are the normalised tokens, beside the gradients of
  the norm's parameters. The norm's backward moves what torch's does, 88 MB = 20 us a merger beside 325 us of products
  (torch's), but in two launches for all mergers.
"""

# Triton's decorators keep the kernels' own signatures, which know neither launch options nor its ranges.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from .triton_kernel_gelu import beyond, gelu


@triton.jit
def _pick(items, index, COUNT: tl.constexpr):
    """Return one of a tuple of pointers of one type or numbers, by an index that is known only on the device."""
    item = items[0]
    for i in tl.static_range(1, COUNT):
        if index == i:
            item = items[i]
    return item


@triton.jit
def _shared(value, merged, CELLS: tl.constexpr):
    """Turn means over the cells of a token into means over what one norm sees: the cell, or the whole token."""
    return tl.where(merged, tl.sum(value, 0) / CELLS, value)  # [CELLS]


@triton.jit
def _statistics(x, inside, merged, width, eps, CELLS: tl.constexpr):
    """Return the reciprocal deviation of each cell of a token, [CELLS], and x less its mean.

    Where the token has one norm, the cells' numbers are equal.
    """
    mean = _shared(tl.sum(x, 1) / width, merged, CELLS)
    centred = tl.where(inside, x - mean[:, None], 0.0)
    variance = _shared(tl.sum(centred * centred, 1) / width, merged, CELLS)
    return 1.0 / tl.sqrt(variance + eps), centred


@triton.jit
def _cells(width, strides, group, GROUP: tl.constexpr, CELLS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the elements of a token, those that exist, their norm's parameters, and whether the norm spans all cells.

    `strides`: of a cell in the norm's parameters, 0 or C, for each merger.
    """
    cell = tl.arange(0, CELLS)
    column = tl.arange(0, BLOCK_C)
    inside = (column < width)[None, :] & (cell >= 0)[:, None]  # [CELLS, BLOCK_C]
    stride = _pick(strides, group, GROUP)
    merged = (cell * 0 + stride) > 0  # a vector: scalar conditions do not mix with it in the interpreter
    return cell[:, None] * width + column[None, :], inside, cell[:, None] * stride + column[None, :], merged


@triton.jit(do_not_specialize=["num_tokens"])
def _norm_kernel(
    features, norm_weights, norm_biases, strides,  # G each
    normal,  # (G, M, D)
    num_tokens, width, eps,
    GROUP: tl.constexpr, CELLS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Normalise one token."""
    group = tl.program_id(1)
    token = group.to(tl.int64) * num_tokens + tl.program_id(0)  # of all mergers' tokens
    place, inside, parameter, merged = _cells(width, strides, group, GROUP, CELLS, BLOCK_C)
    source = _pick(features, group, GROUP) + tl.program_id(0).to(tl.int64) * CELLS * width
    x = tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
    rstd, centred = _statistics(x, inside, merged, width, eps, CELLS)
    weight = tl.load(_pick(norm_weights, group, GROUP) + parameter, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(_pick(norm_biases, group, GROUP) + parameter, mask=inside, other=0.0).to(tl.float32)
    y = centred * rstd[:, None] * weight + bias
    tl.store(normal + token * CELLS * width + place, y.to(normal.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def _norm_weights_kernel(
    grads, features, norm_weights, norm_biases, strides,  # G each
    normal, weight_sums, bias_sums,  # (G, M, D); (G, parts, D) fp32 twice
    num_tokens, width, eps, tokens_per_part,
    GROUP: tl.constexpr, CELLS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of the norm's parameters over one part of a merger's tokens, cell by cell.

    The normalised tokens are written on the way, for the product that needs them. `_norm_features_kernel` is another
    pass over the same tokens: one for both would save a reading of 29 MB (at least 7 us on an H200), but 8192 padded
    columns of two sums and three tiles spill.
    """
    group = tl.program_id(1)
    place, inside, parameter, merged = _cells(width, strides, group, GROUP, CELLS, BLOCK_C)
    norm_weight = _pick(norm_weights, group, GROUP)
    norm_bias = _pick(norm_biases, group, GROUP)
    first = tl.program_id(0).to(tl.int64) * tokens_per_part
    source = _pick(features, group, GROUP) + first * CELLS * width
    grad = _pick(grads, group, GROUP) + first * CELLS * width
    target = normal + (group.to(tl.int64) * num_tokens + first) * CELLS * width
    weight_sum = tl.zeros([CELLS, BLOCK_C], tl.float32)
    bias_sum = tl.zeros([CELLS, BLOCK_C], tl.float32)
    for _ in range(tl.minimum(tokens_per_part, num_tokens - first)):
        x = tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(norm_weight + parameter, mask=inside, other=0.0).to(tl.float32)  # from L1: saves registers
        rstd, centred = _statistics(x, inside, merged, width, eps, CELLS)
        x = centred * rstd[:, None]
        weight_sum += g * x
        bias_sum += g
        y = x * weight + tl.load(norm_bias + parameter, mask=inside, other=0.0).to(tl.float32)
        tl.store(target + place, y.to(normal.dtype.element_ty), mask=inside)
        source += CELLS * width
        grad += CELLS * width
        target += CELLS * width
    part = (group.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * CELLS * width
    tl.store(weight_sums + part + place, weight_sum, mask=inside)
    tl.store(bias_sums + part + place, bias_sum, mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def _norm_features_kernel(
    grads, features, norm_weights, strides,  # G each
    num_tokens, width, eps, tokens_per_part,
    GROUP: tl.constexpr, CELLS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Turn the gradients of one part of a merger's normalised tokens into those of its features, in place."""
    group = tl.program_id(1)
    place, inside, parameter, merged = _cells(width, strides, group, GROUP, CELLS, BLOCK_C)
    norm_weight = _pick(norm_weights, group, GROUP)
    first = tl.program_id(0).to(tl.int64) * tokens_per_part
    source = _pick(features, group, GROUP) + first * CELLS * width
    grad = _pick(grads, group, GROUP) + first * CELLS * width
    for _ in range(tl.minimum(tokens_per_part, num_tokens - first)):
        x = tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(norm_weight + parameter, mask=inside, other=0.0).to(tl.float32)  # from L1: saves registers
        rstd, centred = _statistics(x, inside, merged, width, eps, CELLS)
        x = centred * rstd[:, None]
        g *= weight
        along = _shared(tl.sum(g * x, 1) / width, merged, CELLS)
        level = _shared(tl.sum(g, 1) / width, merged, CELLS)
        g = (g - level[:, None] - x * along[:, None]) * rstd[:, None]
        tl.store(grad + place, g.to(source.dtype.element_ty), mask=inside)
        source += CELLS * width
        grad += CELLS * width


@triton.jit
def _finish(
    product, bias, hidden, activated, first_row, row, first_column, num_tokens, num_columns, KEEP_HIDDEN: tl.constexpr
):
    """Add the bias, apply GELU and store a tile, [rows, columns]."""
    column = first_column + tl.arange(0, product.shape[1])
    product += tl.load(bias + column, mask=column < num_columns, other=0.0).to(tl.float32)[None, :]
    inside = (row < num_tokens)[:, None] & (column < num_columns)[None, :]
    target = (first_row + row)[:, None] * num_columns + column[None, :]
    if KEEP_HIDDEN:
        tl.store(hidden + target, product.to(hidden.dtype.element_ty), mask=inside)
    tl.store(activated + target, gelu(product).to(activated.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def _fc1_gelu_kernel(
    normal, weights, biases,  # G each; normalised vectors (M, D), weights (H, D), biases (H,)
    hidden, activated,  # (G, M, H) twice
    num_tokens, num_columns, depth,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BAND: tl.constexpr,
    KEEP_HIDDEN: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute one BLOCK_M x BLOCK_N tile of gelu(normal @ weight.T + bias) of one merger. BLOCK_K divides the depth.

    BAND: rows of tiles that are walked before the next column.
    """
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles_n = tl.cdiv(num_columns, BLOCK_N)
    tiles = tiles_m * tiles_n
    group = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    first = tile // (BAND * tiles_n) * BAND
    band = tl.minimum(tiles_m - first, BAND)
    tile_m = first + tile % (BAND * tiles_n) % band
    tile_n = tile % (BAND * tiles_n) // band

    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows and columns past the end repeat the last one: loads need no mask, and nothing of them is stored.
    source_row = tl.minimum(row, num_tokens - 1).to(tl.int64)
    weight_row = tl.minimum(column, num_columns - 1).to(tl.int64)
    a_pointers = _pick(normal, group, GROUP) + source_row[:, None] * depth + k[None, :]  # [M, K]
    b_pointers = _pick(weights, group, GROUP) + weight_row[:, None] * depth + k[None, :]  # [N, K]

    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, depth, BLOCK_K):
        a = tl.load(a_pointers + start)
        b = tl.load(b_pointers + start)
        product = tl.dot(a, tl.trans(b), product, input_precision=INPUT_PRECISION)

    bias = _pick(biases, group, GROUP)
    first_row = group.to(tl.int64) * num_tokens
    first_column = tile_n * BLOCK_N
    if BLOCK_N > 128:  # half by half: a whole tile and its GELU do not fit the registers
        halves = tl.permute(tl.reshape(product, [BLOCK_M, 2, BLOCK_N // 2]), [0, 2, 1])
        left, right = tl.split(halves)
        _finish(left, bias, hidden, activated, first_row, row, first_column, num_tokens, num_columns, KEEP_HIDDEN)
        first_column += BLOCK_N // 2
        _finish(right, bias, hidden, activated, first_row, row, first_column, num_tokens, num_columns, KEEP_HIDDEN)
    else:
        _finish(product, bias, hidden, activated, first_row, row, first_column, num_tokens, num_columns, KEEP_HIDDEN)


@triton.jit(do_not_specialize=["num_tokens"])
def _gelu_backward_kernel(
    grad, hidden, activated, sums,  # (G, M, H) thrice, (G, parts, H) fp32
    num_tokens, num_columns, tokens_per_part,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """Turn the gradient of the activation into that of the pre-activation, in place.

    Where the weights learn, also recompute the activation, and sum the gradient over this part's tokens for the bias.
    """
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(1)
    group = tl.program_id(2).to(tl.int64)
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, tokens_per_part, BLOCK_M):
        row = part * tokens_per_part + start + tl.arange(0, BLOCK_M)
        inside = (row < num_tokens)[:, None] & (column < num_columns)[None, :]  # [M, N]
        place = (group * num_tokens + row)[:, None] * num_columns + column[None, :]
        h = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        share = beyond(tl.abs(h))
        below = tl.where(h < 0, share, 1.0 - share)
        density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * h * h)
        g *= below + h * density
        tl.store(grad + place, g.to(grad.dtype.element_ty), mask=inside)
        if WEIGHTS:
            tl.store(activated + place, (h * below).to(activated.dtype.element_ty), mask=inside)
            total += tl.sum(g, 0)
    if WEIGHTS:
        place = (group * tl.num_programs(1) + part) * num_columns + column
        tl.store(sums + place, total, mask=column < num_columns)

"""The projector in Triton: the first product of all mergers in one launch, erf-GELU in its epilogue.

Legend: G mergers of one tower, M tokens, CELLS = merge_size ** 2 patches a token, C a patch's width, D = CELLS * C the
merged width, H the hidden width, O the decoder's.

Counted for the 8B model (D = H = 4608, O = 4096) at M = 1,600 tokens, bf16, on an H200 (4.3 TB/s, 790 TFLOP/s):

- Both products take 128 GFLOP = 162 us per merger; everything else that a merger moves unfused (normalised vectors
  written and read, pre-activation read and written) is 88 MB = 21 us. The most that fusing can buy is 1.13x, so each
  part is fused only where it is free: GELU is (it hangs on accumulators that are in registers anyway), and one launch
  for all mergers is. What the launch gains depends on M: at 1,024 tokens a merger's 144 tiles of 128 x 256 take 2 waves
  of 132 processors for 1.09, four mergers' 576 take 5 for 4.36 (1.6x); at 1,600 it is 2 for 1.77 and 8 for 7.09, no
  gain. Tiles of 128 x 128 would fill 14.2 of 15 there, but load 1.5x the bytes into shared memory, which then bounds
  them. The second product stays with cuBLAS: a merger's hidden rows are 1.2 MB per 128 tokens and fit no shared memory.
- Normalising while loading is exact (fp32, then one cast, as an unfused norm), but every column of tiles repeats it:
  about 6 instructions for each of the BLOCK_M * BLOCK_K elements of a step, 380 cycles at 128 x 64 beside 1,024 of
  matrix instructions at BLOCK_N = 256. At many tokens that costs more than the 29 MB = 7 us which a separate pass
  moves. At few tokens the product waits for its 42 MB of weights (10 us), arithmetic idles, and the pass can go. Hence
  `norm_on_load` stands in the table. The algebraic way round, rstd * (x @ W' - mean * sum(W')), subtracts two large
  numbers where the mean is not small beside the deviation, and W' = W * norm_weight must be rounded to 16 bits: not
  done.
- For the backward only the pre-activation is kept (M * H * 2 bytes; an unfused merger keeps three such tensors). The
  activation is recomputed in the pass that needs it anyway, and so are the normalised tokens, beside the gradients of
  the norm's parameters. The norm's backward moves what torch's does, 88 MB = 20 us a merger beside 325 us of products
  (torch's), but in two launches for all mergers.
"""

# Triton's decorators keep the kernels' own signatures, which know neither launch options nor its ranges.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .. import runtime
from .op import FEW_TOKENS
from .reference import ProjectorWeights

MAX_GROUP = 4
"""Mergers in one launch: the towers at hand have a main one and three taps."""
MAX_WIDTH = 4096
"""Widest patch whose token the row kernel holds in registers."""
BAND = 8
"""Rows of tiles that are walked before the next column, so that weights and features stay in the L2 cache."""


@triton.jit
def _pick(items, index, COUNT: tl.constexpr):
    """Return one of a tuple of alike pointers or numbers, by an index that is known only on the device."""
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
    """Return mean and reciprocal deviation for each cell of a token, [CELLS] each, and x less its mean.

    Where the token has one norm, the cells' pairs are equal.
    """
    mean = _shared(tl.sum(x, 1) / width, merged, CELLS)
    centred = tl.where(inside, x - mean[:, None], 0.0)
    variance = _shared(tl.sum(centred * centred, 1) / width, merged, CELLS)
    return mean, 1.0 / tl.sqrt(variance + eps), centred


@triton.jit(do_not_specialize=["num_tokens"])
def _norm_kernel(
    features, norm_weights, norm_biases, strides,  # G each; stride of a cell in the norm's parameters: 0 or C
    normal, mean, rstd,  # (G, M, D), (G, M, CELLS), (G, M, CELLS)
    num_tokens, width, eps,
    GROUP: tl.constexpr, CELLS: tl.constexpr, BLOCK_C: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """Normalise one token where WRITE, else find the mean and reciprocal deviation of its cells."""
    group = tl.program_id(1)
    token = group.to(tl.int64) * num_tokens + tl.program_id(0)  # of all mergers' tokens
    cell = tl.arange(0, CELLS)
    column = tl.arange(0, BLOCK_C)
    inside = (column < width)[None, :] & (cell >= 0)[:, None]  # [CELLS, BLOCK_C]
    place = cell[:, None] * width + column[None, :]
    stride = _pick(strides, group, GROUP)
    merged = (cell * 0 + stride) > 0  # a vector: scalar conditions do not mix with it in the interpreter
    source = _pick(features, group, GROUP) + tl.program_id(0).to(tl.int64) * CELLS * width
    x = tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
    row_mean, row_rstd, centred = _statistics(x, inside, merged, width, eps, CELLS)
    if WRITE:
        parameter = cell[:, None] * stride + column[None, :]
        weight = tl.load(_pick(norm_weights, group, GROUP) + parameter, mask=inside, other=0.0).to(tl.float32)
        bias = tl.load(_pick(norm_biases, group, GROUP) + parameter, mask=inside, other=0.0).to(tl.float32)
        y = centred * row_rstd[:, None] * weight + bias
        tl.store(normal + token * CELLS * width + place, y.to(normal.dtype.element_ty), mask=inside)
    else:
        tl.store(mean + token * CELLS + cell, row_mean)
        tl.store(rstd + token * CELLS + cell, row_rstd)


@triton.jit(do_not_specialize=["num_tokens"])
def _norm_backward_kernel(
    grads, features, norm_weights, norm_biases, strides,  # G each
    normal, weight_sums, bias_sums,  # (G, M, D); (G, parts, D) fp32 twice
    num_tokens, width, eps, tokens_per_part,
    GROUP: tl.constexpr, CELLS: tl.constexpr, BLOCK_C: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """Go back through the norm of one part of a merger's tokens, one after another.

    WEIGHTS: the gradients of the norm's parameters are summed over this part, cell by cell, and the normalised tokens
    are written for the product that needs them. Else `grads` become the gradients of the features, in place. Both at
    once would save 29 MB = 7 us of reading, but 8192 padded columns of two sums and three tiles spill.
    """
    group = tl.program_id(1)
    cell = tl.arange(0, CELLS)
    column = tl.arange(0, BLOCK_C)
    inside = (column < width)[None, :] & (cell >= 0)[:, None]  # [CELLS, BLOCK_C]
    place = cell[:, None] * width + column[None, :]
    stride = _pick(strides, group, GROUP)
    merged = (cell * 0 + stride) > 0
    parameter = cell[:, None] * stride + column[None, :]
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
        _mean, rstd, centred = _statistics(x, inside, merged, width, eps, CELLS)
        x = centred * rstd[:, None]
        if WEIGHTS:
            weight_sum += g * x
            bias_sum += g
            y = x * weight + tl.load(norm_bias + parameter, mask=inside, other=0.0).to(tl.float32)
            tl.store(target + place, y.to(normal.dtype.element_ty), mask=inside)
        else:
            g *= weight
            along = _shared(tl.sum(g * x, 1) / width, merged, CELLS)
            level = _shared(tl.sum(g, 1) / width, merged, CELLS)
            g = (g - level[:, None] - x * along[:, None]) * rstd[:, None]
            tl.store(grad + place, g.to(source.dtype.element_ty), mask=inside)
        source += CELLS * width
        grad += CELLS * width
        target += CELLS * width
    if WEIGHTS:
        part = (group.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * CELLS * width
        tl.store(weight_sums + part + place, weight_sum, mask=inside)
        tl.store(bias_sums + part + place, bias_sum, mask=inside)


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
    gelu = 0.5 * product * (1.0 + tl.math.erf(product * 0.7071067811865476))
    tl.store(activated + target, gelu.to(activated.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def _fc1_gelu_kernel(
    sources,  # G pointers to (M, D): features where NORM_ON_LOAD, else normalised vectors
    norm_weights, norm_biases, strides, weights, biases,  # G each
    mean, rstd, hidden, activated,  # (G, M, CELLS) twice, (G, M, H) twice
    num_tokens, num_columns, width,
    GROUP: tl.constexpr, CELLS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BAND: tl.constexpr, NORM_ON_LOAD: tl.constexpr, KEEP_HIDDEN: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute one BLOCK_M x BLOCK_N tile of gelu(normal @ weight.T + bias) of one merger. BLOCK_K divides C."""
    depth = width * CELLS
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
    a_pointers = _pick(sources, group, GROUP) + source_row[:, None] * depth + k[None, :]  # [M, K]
    b_pointers = _pick(weights, group, GROUP) + weight_row[:, None] * depth + k[None, :]  # [N, K]
    norm_weight = _pick(norm_weights, group, GROUP)
    norm_bias = _pick(norm_biases, group, GROUP)
    stride = _pick(strides, group, GROUP)
    pair = (group.to(tl.int64) * num_tokens + source_row) * CELLS  # [M]

    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, depth, BLOCK_K):
        a = tl.load(a_pointers + start)
        b = tl.load(b_pointers + start)
        if NORM_ON_LOAD:
            cell = start // width
            parameter = cell * stride + start - cell * width + k
            scale = tl.load(norm_weight + parameter).to(tl.float32)  # [K]
            shift = tl.load(norm_bias + parameter).to(tl.float32)
            centred = a.to(tl.float32) - tl.load(mean + pair + cell)[:, None]
            normal = centred * tl.load(rstd + pair + cell)[:, None] * scale[None, :] + shift[None, :]
            a = normal.to(b.dtype)
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
        below = 0.5 + 0.5 * tl.math.erf(h * 0.7071067811865476)
        density = 0.3989422804014327 * tl.exp(-0.5 * h * h)
        g *= below + h * density
        tl.store(grad + place, g.to(grad.dtype.element_ty), mask=inside)
        if WEIGHTS:
            tl.store(activated + place, (h * below).to(activated.dtype.element_ty), mask=inside)
            total += tl.sum(g, 0)
    if WEIGHTS:
        place = (group * tl.num_programs(1) + part) * num_columns + column
        tl.store(sums + place, total, mask=column < num_columns)


def refusal(features: Sequence[Tensor], merge_size: int) -> str:
    """Say why the kernels cannot serve such features, or return an empty text."""
    width = features[0].shape[1]
    cells = merge_size**2
    if width % 16 or width > MAX_WIDTH:
        return f"patches of width {width}: the kernels take multiples of 16 up to {MAX_WIDTH}"
    if cells & (cells - 1):
        return f"merge_size {merge_size}: the kernels take powers of two"
    return ""


def forward(
    features: Sequence[Tensor], weights: Sequence[ProjectorWeights], merge_size: int, eps: float, keep: bool
) -> tuple[list[Tensor], Tensor]:
    """Run all mergers; return their tokens, and where `keep` the pre-activation (else an empty tensor)."""
    features, weights = _contiguous(features, weights)
    x = features[0]
    shape = (len(features), x.shape[0] // merge_size**2, weights[0].fc1_weight.shape[0])
    activated, hidden = x.new_empty(shape), x.new_empty(shape if keep else 0)
    row = fc1_row(runtime.capability(x.device), x.dtype, shape[1], shape[0])
    for part in _parts(shape):
        normalised = _normalise(features[part], weights[part], merge_size**2, eps, write=not row["norm_on_load"])
        _launch_fc1(features[part], weights[part], merge_size**2, row, *normalised,
                    hidden[part] if keep else hidden, activated[part], keep)  # fmt: skip
    return [F.linear(a, w.fc2_weight, w.fc2_bias) for a, w in zip(activated, weights, strict=True)], hidden


def backward(
    grads: Sequence[Tensor],
    features: Sequence[Tensor],
    weights: Sequence[ProjectorWeights],
    hidden: Tensor,
    merge_size: int,
    eps: float,
    of_features: bool,
    of_weights: bool,
) -> tuple[list[Tensor], list[ProjectorWeights]]:
    """Return the gradients of the features and of the parameters, each list empty where it is not asked for."""
    features, weights = _contiguous(features, weights)
    cells = merge_size**2
    grad_hidden = torch.empty_like(hidden)
    for out, grad, w in zip(grad_hidden, grads, weights, strict=True):
        torch.mm(grad, w.fc2_weight, out=out)
    activated, fc1_bias = _gelu_backward(grad_hidden, hidden, of_weights)
    fc2_weight = [torch.mm(g.t(), a) for g, a in zip(grads, activated, strict=True)] if of_weights else []
    del activated  # its memory can hold what follows
    grad_normal = [torch.mm(g, w.fc1_weight) for g, w in zip(grad_hidden, weights, strict=True)]
    normal, norms = _norm_backward(grad_normal, features, weights, cells, eps, of_features, of_weights)
    by_features = [g.view_as(x) for g, x in zip(grad_normal, features, strict=True)] if of_features else []
    if not of_weights:
        return by_features, []
    fc1_weight = [torch.mm(g.t(), x) for g, x in zip(grad_hidden, normal, strict=True)]
    fc2_bias = [g.sum(0) for g in grads]
    columns = (*norms, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    return by_features, [ProjectorWeights(*row) for row in zip(*columns, strict=True)]


def fc1_row(capability: int, dtype: torch.dtype, num_tokens: int, num_mergers: int) -> Any:
    """Return the table's row for the first product of so many mergers of so many tokens each."""
    if dtype == torch.float32:
        return runtime.table_row("projector", capability, kernel="fc1", bits=32)
    few = num_tokens <= FEW_TOKENS
    return runtime.table_row(
        "projector",
        capability,
        kernel="fc1",
        bits=16,
        tokens="few" if few else "many",
        mergers="one" if num_mergers == 1 else "tower",
    )


def _contiguous(
    features: Sequence[Tensor], weights: Sequence[ProjectorWeights]
) -> tuple[list[Tensor], list[ProjectorWeights]]:
    return [x.contiguous() for x in features], [ProjectorWeights(*(t.contiguous() for t in w)) for w in weights]


def _parts(shape: Sequence[int]) -> list[slice]:
    """Return the slices of mergers that share a launch; none where there is nothing to compute."""
    group, num_tokens = shape[:2]
    return [slice(g, min(g + MAX_GROUP, group)) for g in range(0, group if num_tokens else 0, MAX_GROUP)]


def _cell_strides(features: Sequence[Tensor], weights: Sequence[ProjectorWeights]) -> tuple[int, ...]:
    """Return per merger how far its norm's parameters move from cell to cell: 0 where each patch has its own norm."""
    width = features[0].shape[1]
    return tuple(width if w.norm_weight.shape[0] > width else 0 for w in weights)


def _normalise(
    features: Sequence[Tensor], weights: Sequence[ProjectorWeights], cells: int, eps: float, *, write: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised tokens where `write`, else means and reciprocal deviations; what was not made is empty."""
    num_patches, width = features[0].shape
    num_tokens, group = num_patches // cells, len(features)
    normal = features[0].new_empty((group, num_tokens, cells * width) if write else (group, 0))
    pairs = 0 if write else (group, num_tokens, cells)
    mean, rstd = (features[0].new_empty(pairs, dtype=torch.float32) for _ in range(2))
    row = runtime.table_row("projector", runtime.capability(mean.device), kernel="norm")
    _norm_kernel[(num_tokens, group)](
        tuple(features), tuple(w.norm_weight for w in weights), tuple(w.norm_bias for w in weights),
        _cell_strides(features, weights), normal, mean, rstd, num_tokens, width, eps,
        GROUP=group, CELLS=cells, BLOCK_C=triton.next_power_of_2(width), WRITE=write,
        num_warps=row["num_warps"], enable_fp_fusion=True,
    )  # fmt: skip
    return normal, mean, rstd


def _norm_backward(
    grads: list[Tensor], features: Sequence[Tensor], weights: Sequence[ProjectorWeights], cells: int, eps: float,
    of_features: bool, of_weights: bool,
) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:  # fmt: skip
    """Turn `grads` in place into those of the features; return normalised tokens and the norms' own gradients."""
    group, (num_tokens, merged) = len(grads), grads[0].shape
    row = runtime.table_row("projector", runtime.capability(grads[0].device), kernel="norm_backward")
    parts = triton.cdiv(num_tokens, row["tokens_per_part"])
    normal = grads[0].new_empty((group, num_tokens, merged) if of_weights else (group, 0))
    sums = grads[0].new_empty((2, group, parts, merged) if of_weights else (2, group, 0), dtype=torch.float32)
    passes = [True] * of_weights + [False] * of_features  # in this order: the second overwrites what the first reads
    for part, for_weights in itertools.product(_parts((group, num_tokens)), passes):
        some = weights[part]
        _norm_backward_kernel[(parts, len(some))](
            tuple(grads[part]), tuple(features[part]),
            tuple(w.norm_weight for w in some), tuple(w.norm_bias for w in some), _cell_strides(features, some),
            normal[part], sums[0, part], sums[1, part], num_tokens, merged // cells, eps, row["tokens_per_part"],
            GROUP=len(some), CELLS=cells, BLOCK_C=triton.next_power_of_2(merged // cells),
            WEIGHTS=for_weights, num_warps=row["num_warps"], enable_fp_fusion=True,
        )  # fmt: skip
    found = [
        [s.view(-1, *w.norm_weight.shape).sum(0).to(grads[0].dtype) for s, w in zip(of_all, weights, strict=True)]
        for of_all in sums
    ]
    return normal, (found[0], found[1])


def _launch_fc1(
    features: Sequence[Tensor], weights: Sequence[ProjectorWeights], cells: int, row: Any, normal: Tensor,
    mean: Tensor, rstd: Tensor, hidden: Tensor, activated: Tensor, keep: bool,
) -> None:  # fmt: skip
    _, num_tokens, num_columns = activated.shape
    width = features[0].shape[1]
    block_m, block_n = row["block_m"], row["block_n"]
    block_k = min(row["block_k"], width & -width)  # the largest power of two that divides both
    tiles = triton.cdiv(num_tokens, block_m) * triton.cdiv(num_columns, block_n)
    _fc1_gelu_kernel[(len(features) * tiles,)](
        tuple(features) if row["norm_on_load"] else tuple(normal.unbind(0)),
        tuple(w.norm_weight for w in weights), tuple(w.norm_bias for w in weights), _cell_strides(features, weights),
        tuple(w.fc1_weight for w in weights), tuple(w.fc1_bias for w in weights),
        mean, rstd, hidden, activated, num_tokens, num_columns, width,
        GROUP=len(features), CELLS=cells, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, BAND=BAND,
        NORM_ON_LOAD=row["norm_on_load"], KEEP_HIDDEN=keep,
        INPUT_PRECISION="ieee" if activated.dtype == torch.float32 else None,
        num_warps=row["num_warps"], num_stages=row["num_stages"], enable_fp_fusion=True,
    )  # fmt: skip


def _gelu_backward(grad: Tensor, hidden: Tensor, of_weights: bool) -> tuple[Tensor, list[Tensor]]:
    """Turn `grad` in place into the gradient of `hidden`; return the activation and the gradients of the biases."""
    group, num_tokens, num_columns = hidden.shape
    row = runtime.table_row("projector", runtime.capability(grad.device), kernel="gelu_backward")
    parts = triton.cdiv(num_tokens, row["tokens_per_part"])
    activated = torch.empty_like(hidden) if of_weights else hidden  # a stand-in that nothing writes
    sums = grad.new_empty((group, parts, num_columns) if of_weights else 0, dtype=torch.float32)
    if parts:
        _gelu_backward_kernel[(triton.cdiv(num_columns, row["block_n"]), parts, group)](
            grad, hidden, activated, sums, num_tokens, num_columns, row["tokens_per_part"],
            BLOCK_M=row["block_m"], BLOCK_N=row["block_n"], WEIGHTS=of_weights,
            num_warps=row["num_warps"], enable_fp_fusion=True,
        )  # fmt: skip
    return activated, [s.sum(0).to(grad.dtype) for s in sums]

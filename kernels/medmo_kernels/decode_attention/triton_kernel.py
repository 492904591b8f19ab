"""Split-KV decode attention in two launches, without atomics.

The first cuts every row's tokens into parts and gives one program to each (tile of rows, key/value head, part): it
leaves the part's own softmax average and the base-2 logarithm of its denominator. The second weighs the parts, in
order. Where there is one part, its average is the result: the first launch writes it, and there is no second.

How many parts there are follows from shapes; which tokens a part has follows from that number and from where the row's
tokens begin and end, which the device alone knows. So a launch is the same for every token that a cache has room for, a
part may be empty, and no bit of a row's result depends on how far behind its tokens the cache reaches.

Two kinds of programs share the first launch:

- a prompt program has up to 16 rows (fewer where the batch has few rows per prompt). Their G query heads make the M
  rows of its matrix products, and it walks the prompts that its rows belong to, one after the other, with a fresh
  accumulator each: rows of one prompt that stand together read it once, whatever the order nothing is wrong, and a
  NaN in one prompt cannot reach a row of another. No table of tiles is needed, hence no host synchronisation.
- an own program has one row and reads its own cache; its G query heads (padded to 16) share the bytes.

Bytes decide. Floors for the 8B decoder (H 32, K 8, D 128, bf16), per layer on an H200 at 4.3 TB/s, none measured: 64
rows x 4,096 tokens, nothing shared, 1.07 GB, 250 us; 8 prompts of 4,096 tokens with 8 rows each and 128 own tokens, 134
+ 34 MB, 39 us (copies per row: 258 us); 1 row x 4,096 tokens, 16.8 MB, 3.9 us, where launches and too few programs
weigh more. Parts cost 8 (D + 1) bytes per row, head and part: at least 4 us at 64 rows and 8 parts. A tile of M = 64
does 64 FLOP per byte of keys and values, 35 % of what the tensor cores could do in that time.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl


@triton.jit
def _span(
    query, key, value, start, stop, key_stride, value_stride, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to columns start to stop: returns the unnormalised sum, the maximum (base 2) and the denominator."""
    dims = tl.arange(0, BLOCK_D)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(start, stop, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        inside = columns < stop
        mask = inside[:, None]
        if HEAD_DIM < BLOCK_D:
            mask = mask & (dims < HEAD_DIM)[None, :]
        far = columns.to(tl.int64)[:, None]
        k = tl.load(key + far * key_stride + dims[None, :], mask=mask, other=0.0)  # [N, D]
        scores = tl.dot(query, tl.trans(k), input_precision=PRECISION) * scale  # [M, N]
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))  # finite: a block has one column at least
        weights = tl.exp2(scores - new_top[:, None])
        faded = tl.exp2(top - new_top)
        total = total * faded + tl.sum(weights, 1)
        v = tl.load(value + far * value_stride + dims[None, :], mask=mask, other=0.0)  # [N, D]
        acc = tl.dot(weights.to(v.dtype), v, acc * faded[:, None], input_precision=PRECISION)  # [M, D]
        top = new_top
    return acc, top, total


@triton.jit
def _keep(part_out, part_lse, place, live, acc, top, total, BLOCK_D: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Store the rows of one part; a part without tokens is 0 with a logarithm of -inf. One part needs no logarithm."""
    dims = tl.arange(0, BLOCK_D)
    divisor = tl.where(total > 0, total, 1.0)
    divisor = tl.where(total != total, total, divisor)  # NaN stays NaN
    mask = live[:, None] & (dims < HEAD_DIM)[None, :]
    mean = (acc / divisor[:, None]).to(part_out.dtype.element_ty)
    tl.store(part_out + place[:, None] * HEAD_DIM + dims[None, :], mean, mask=mask)
    if part_lse is not None:
        tl.store(part_lse + place, top + tl.log2(divisor), mask=live)


@triton.jit
def _prompt_part(
    query, key, value, prompt_lengths, prompt_of, part_out, part_lse, first_place, tile, split, splits, all_splits,
    scale, rows, num_prompts, columns, q_row, q_head, k_row, k_column, v_row, v_column, part_row,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend from a tile of rows to one part of each prompt that the tile's rows belong to."""
    tile_rows: tl.constexpr = BLOCK_M // GROUP
    index, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    row, member = tile * tile_rows + index // GROUP, index % GROUP  # [M]
    live = (index < tile_rows * GROUP) & (row < rows)
    far_row = row.to(tl.int64)
    mask = live[:, None] & (dims < HEAD_DIM)[None, :]
    q = tl.load(query + (far_row * q_row + member * q_head)[:, None] + dims[None, :], mask=mask, other=0.0)  # [M, D]
    place = first_place + far_row * part_row + member * all_splits + split
    owner = tl.load(prompt_of + row, mask=live, other=0)
    # A number that no prompt has becomes that of an empty one behind the last: nothing outside the prompts is read.
    owner = tl.where((owner >= 0) & (owner < num_prompts), owner, num_prompts)
    last = tl.max(tl.where(live, owner, 0), 0)
    for prompt in range(tl.min(tl.where(live, owner, last), 0), last + 1):
        mine = live & (owner == prompt)
        length = tl.where(prompt < num_prompts, columns, 0)
        if HAS_LENGTHS:
            length = tl.minimum(tl.load(prompt_lengths + prompt, mask=prompt < num_prompts, other=0), columns)
        length *= tl.max(mine.to(tl.int32), 0)  # none of a prompt between two others that has no row here
        chunk = tl.cdiv(tl.cdiv(length, splits), BLOCK_N) * BLOCK_N
        start = split * chunk
        far = tl.cast(prompt, tl.int64)
        acc, top, total = _span(
            q, key + far * k_row, value + far * v_row, start, tl.minimum(start + chunk, length), k_column, v_column,
            scale, BLOCK_M, BLOCK_N, BLOCK_D, HEAD_DIM, PRECISION,
        )  # fmt: skip
        _keep(part_out, part_lse, place, mine, acc, top, total, BLOCK_D, HEAD_DIM)


@triton.jit
def _own_part(
    query, key, value, lengths, left_pad, part_out, part_lse, first_place, row, split, splits, scale, columns,
    q_head, k_column, v_column, all_splits,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_LEFT_PAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend from one row to one part of the tokens after its prompt."""
    index, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    live = index < GROUP
    mask = live[:, None] & (dims < HEAD_DIM)[None, :]
    q = tl.load(query + (index * q_head)[:, None] + dims[None, :], mask=mask, other=0.0)  # [M, D]
    begin, end = 0, columns
    if HAS_LEFT_PAD:
        begin = tl.maximum(tl.load(left_pad + row), 0)
    if HAS_LENGTHS:
        end = tl.minimum(tl.load(lengths + row), columns)
    chunk = tl.cdiv(tl.cdiv(tl.maximum(end - begin, 0), splits), BLOCK_N) * BLOCK_N
    start = begin + split * chunk
    acc, top, total = _span(
        q, key, value, start, tl.minimum(start + chunk, end), k_column, v_column, scale,
        BLOCK_M, BLOCK_N, BLOCK_D, HEAD_DIM, PRECISION,
    )  # fmt: skip
    _keep(part_out, part_lse, first_place + index * all_splits, live, acc, top, total, BLOCK_D, HEAD_DIM)


@triton.jit(
    do_not_specialize=[
        *("rows", "columns", "num_prompts", "prompt_columns", "prompt_programs", "prompt_splits", "own_splits")
    ]
)
def decode_parts_kernel(
    query, key, value, lengths, left_pad, prompt_key, prompt_value, prompt_lengths, prompt_of, part_out, part_lse,
    scale, rows, columns, num_prompts, prompt_columns, prompt_programs, prompt_splits, own_splits,
    q_row, q_head, k_row, k_head, k_column, v_row, v_head, v_column,
    pk_row, pk_head, pk_column, pv_row, pv_head, pv_column,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PROMPT_M: tl.constexpr, OWN_M: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_PROMPT: tl.constexpr, HAS_PROMPT_LENGTHS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    HAS_LEFT_PAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to one part of the tokens of a tile of rows, for one key/value head.

    `part_out` is the result, and there is no `part_lse`, where a row has one part in all.
    """
    program, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    all_splits = prompt_splits + own_splits
    part_row = tl.num_programs(1) * GROUP * all_splits  # parts of one row
    query += head * GROUP * q_head
    first_place = head * GROUP * all_splits
    if program < prompt_programs:
        if HAS_PROMPT:
            _prompt_part(
                query, prompt_key + head * pk_head, prompt_value + head * pv_head, prompt_lengths, prompt_of,
                part_out, part_lse, first_place, program // prompt_splits, program % prompt_splits, prompt_splits,
                all_splits, scale, rows, num_prompts, prompt_columns, q_row, q_head, pk_row, pk_column, pv_row,
                pv_column, part_row,
                GROUP, HEAD_DIM, BLOCK_D, PROMPT_M, BLOCK_N, HAS_PROMPT_LENGTHS, PRECISION,
            )  # fmt: skip
    else:
        row, split = (program - prompt_programs) // own_splits, (program - prompt_programs) % own_splits
        far = row.to(tl.int64)
        _own_part(
            query + far * q_row, key + head * k_head + far * k_row, value + head * v_head + far * v_row,
            lengths, left_pad, part_out, part_lse, first_place + far * part_row + prompt_splits + split,
            row, split, own_splits, scale, columns, q_head, k_column, v_column, all_splits,
            GROUP, HEAD_DIM, BLOCK_D, OWN_M, BLOCK_N, HAS_LENGTHS, HAS_LEFT_PAD, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["splits"])
def decode_join_kernel(
    part_out, part_lse, out, splits, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr
):
    """Weigh the parts of one row and head: BLOCK_S is no smaller than their number."""
    place = tl.program_id(0).to(tl.int64)
    part, dims = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    lse = tl.load(part_lse + place * splits + part, mask=part < splits, other=float("-inf"))
    top = tl.maximum(tl.max(lse, 0), -1.0e30)  # finite even where no part has a token
    weights = tl.exp2(lse - top)  # [S]
    mask = (part < splits)[:, None] & (dims < HEAD_DIM)[None, :]
    values = tl.load(part_out + (place * splits + part)[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
    total = tl.sum(weights, 0)
    mean = tl.sum(weights[:, None] * values, 0) / tl.where(total == 0.0, 1.0, total)  # [D]
    tl.store(out + place * HEAD_DIM + dims, mean.to(out.dtype.element_ty), mask=dims < HEAD_DIM)

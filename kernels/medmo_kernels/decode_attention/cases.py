"""Cases of decode_attention for the walker, the compiler gate and the benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..spec import Arguments, Bench, Compile, Gate, OpSpec, Tolerance
from .op import BACK_ENDS, FEW_ROWS, choices, decode_attention, shape_class
from .reference import decode_attention_reference


@dataclass(frozen=True)
class Size:
    """One decoding step.

    Attributes:
        rows: (first column, column after the last) of each row's own tokens.
        columns: columns of the cache.
        heads: query heads, key/value heads, head width.
        prompts: tokens of each prompt; none: a plain cache.
        prompt_of: prompt of each row.
        bounded: whether `lengths`, and `left_pad` where it says something, are passed; else the rows fill the cache.
        padding: columns behind the longest prompt.
        num_splits: argument of that name.
    """

    rows: Sequence[tuple[int, int]]
    columns: int
    heads: tuple[int, int, int]
    prompts: Sequence[int] = ()
    prompt_of: Sequence[int] = ()
    bounded: bool = True
    padding: int = 2
    num_splits: int | None = None


def _case(size: Size, generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    num_heads, num_kv_heads, head_dim = size.heads
    rows = len(size.rows)

    def normal(*shape: int) -> Tensor:
        wide = torch.float64 if dtype in (torch.float64, torch.float32) else torch.float32
        return torch.randn(*shape, generator=generator, dtype=wide).to(dtype)

    def cache(spans: Sequence[tuple[int, int]], columns: int) -> tuple[Tensor, Tensor]:
        """Keys and values that are NaN wherever no token is, as memory that nobody wrote may be."""
        key, value = (normal(len(spans), num_kv_heads, columns, head_dim) for _ in range(2))
        for row, (first, stop) in enumerate(spans):
            for filled in (key, value):
                filled[row, :, :first] = filled[row, :, stop:] = float("nan")
        return key, value

    def index(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    key, value = cache(size.rows, size.columns)
    arguments: Arguments = {"query": normal(rows, num_heads, head_dim), "key_cache": key, "value_cache": value}
    if size.bounded:
        arguments["lengths"] = index([stop for _, stop in size.rows])
        if any(first for first, _ in size.rows):
            arguments["left_pad"] = index([first for first, _ in size.rows])
    if size.prompts:
        spans = [(0, length) for length in size.prompts]
        prompt_key, prompt_value = cache(spans, max(size.prompts) + size.padding)
        arguments |= {"prompt_key": prompt_key, "prompt_value": prompt_value, "prompt_of": index(size.prompt_of)}
        if size.padding or len(set(size.prompts)) > 1:
            arguments["prompt_lengths"] = index(size.prompts)
    return arguments | {"num_splits": size.num_splits}


def _op_arguments(arguments: Arguments) -> Arguments:
    order = ("query", "key_cache", "value_cache", "lengths", "left_pad", "prompt_key", "prompt_value", "prompt_lengths",
             "prompt_of")  # fmt: skip
    scale = arguments["query"].shape[-1] ** -0.5
    return {name: arguments.get(name) for name in order} | {"scale": scale, "num_splits": arguments["num_splits"]}


def own_tokens(arguments: Arguments) -> float:
    """Return the tokens of all rows' own caches."""
    rows, _, columns, _ = arguments["key_cache"].shape
    stop, first = arguments.get("lengths"), arguments.get("left_pad")
    return float((rows * columns if stop is None else stop.sum()) - (0 if first is None else first.sum()))


def prompt_tokens(arguments: Arguments, per_row: bool) -> float:
    """Return the tokens of the prompts, each once or once per row that continues it."""
    if arguments.get("prompt_key") is None:
        return 0.0
    count, _, columns, _ = arguments["prompt_key"].shape
    lengths = arguments.get("prompt_lengths")
    lengths = torch.full((count,), columns) if lengths is None else lengths.cpu()
    owners = arguments["prompt_of"].cpu()
    return float(lengths[owners if per_row else owners.unique()].sum())


def _bytes(arguments: Arguments) -> float:
    """Count queries, results and the keys and values of all tokens, those of a prompt once."""
    query, key = arguments["query"], arguments["key_cache"]
    tokens = own_tokens(arguments) + prompt_tokens(arguments, per_row=False)
    return (2 * query.numel() + 2 * tokens * key.shape[1] * key.shape[3]) * query.element_size()


def _flops(arguments: Arguments) -> float:
    _, num_heads, head_dim = arguments["query"].shape
    return 4.0 * (own_tokens(arguments) + prompt_tokens(arguments, per_row=True)) * num_heads * head_dim


def _shape_class(arguments: Arguments) -> str:
    is_full = arguments.get("lengths") is None and arguments.get("left_pad") is None
    return shape_class(arguments["query"].shape[0], is_full, arguments.get("prompt_key") is not None)


def _gate(kernel: str, constants: Mapping[str, Any]) -> Gate:
    """Warp-group products need 64 rows; smaller tiles use the older instructions and are bound by bytes anyway."""
    return Gate(hgmma=kernel == "decode_parts_kernel" and constants["HAS_PROMPT"] and constants["PROMPT_M"] >= 64)


def _kinds(size: Size) -> dict[str, Size]:
    """Return caches of other lengths, and of one and of many rows where no prompts decide about the tiles."""
    if size.prompts:
        return {"odd": replace(size, prompts=[77] * len(size.prompts), rows=[(0, 33)] * len(size.rows), columns=33)}
    return {name: replace(size, rows=[(0, columns)] * rows, columns=columns)
            for name, rows, columns in (("one odd row", 1, 33), ("many rows", FEW_ROWS + 1, 96))}  # fmt: skip


def _shifted_prompts(**kwargs: Any) -> Tensor:
    if kwargs.get("prompt_of") is not None:
        kwargs["prompt_of"] = (kwargs["prompt_of"] + 1) % kwargs["prompt_key"].shape[0]
    return decode_attention(**kwargs)


def _no_prompts(**kwargs: Any) -> Tensor:
    return decode_attention(**{name: x for name, x in kwargs.items() if not name.startswith("prompt")})


def _one_short(**kwargs: Any) -> Tensor:
    if kwargs.get("lengths") is not None:
        kwargs["lengths"] = (kwargs["lengths"] - 1).clamp(min=0)
    return decode_attention(**kwargs)


def _one_far(**kwargs: Any) -> Tensor:
    """Read one column past the tokens: it holds NaN."""
    if kwargs.get("lengths") is not None:
        kwargs["lengths"] = (kwargs["lengths"] + 1).clamp(max=kwargs["key_cache"].shape[2])
    return decode_attention(**kwargs)


def _without(name: str) -> Any:
    return lambda **kwargs: decode_attention(**{**kwargs, name: None})


def _last_unwritten(**kwargs: Any) -> Tensor:
    out = decode_attention(**kwargs)
    return torch.cat([out.flatten()[:-1], out.flatten()[-1:] * float("nan")]).view_as(out)


def _group(count: int, prompts: int, own: int, heads: tuple[int, int, int], length: int = 1024, room: int = 0) -> Size:
    """Return `count` rows, equally many for each of `prompts` prompts, in order; all caches have `room` behind them."""
    owners = [row * prompts // count for row in range(count)]
    return Size([(0, own)] * count, own + room, heads, [length] * prompts, owners, bounded=room > 0, padding=room)


GQA_8B = (32, 8, 128)
VALUES = "a softmax average of normal values"

SPECS = (
    OpSpec(
        name="decode_attention",
        function=decode_attention,
        reference=decode_attention_reference,
        make=_case,
        sizes={
            "no rows": Size([], 3, (2, 1, 16)),
            "one token": Size([(0, 1)], 1, (2, 2, 64), bounded=False),
            "plain, full": Size([(0, 37)] * 3, 37, (4, 2, 64), bounded=False),
            "plain, ragged and padded": Size([(0, 5), (3, 9), (0, 9), (8, 9), (4, 4)], 9, (6, 2, 40)),
            "prompts in order": _group(6, 3, 4, (4, 2, 16), length=7),
            "prompts, no own tokens": Size([(0, 0)] * 3, 0, (4, 2, 32), [5, 3], [0, 0, 1], bounded=False),
            "prompts ragged, one empty, one unread, some rows empty": Size(
                [(0, 3), (1, 6), (2, 2), (0, 0), (0, 1), (5, 6)], 6, (4, 2, 16), [4, 0, 9, 7], [0, 0, 1, 1, 3, 3]
            ),
            "prompts shuffled": Size([(0, 2), (0, 3), (0, 0), (1, 3)], 3, (3, 1, 72), [2, 8, 1], [2, 0, 2, 1]),
        },
        tolerance={
            torch.float64: Tolerance(1e-12, "another order of summation"),
            torch.float32: Tolerance(2e-6, f"{VALUES}, summed in another order"),
            torch.float16: Tolerance(1e-3, f"{VALUES}; the kernels round weights to fp16 before their product"),
            torch.bfloat16: Tolerance(8e-3, f"{VALUES}; the kernels round weights to bf16 before their product"),
        },
        faults={
            "prompt ignored": _no_prompts,
            "prompt of another row": _shifted_prompts,
            "prompt's padding read": _without("prompt_lengths"),
            "left padding read": _without("left_pad"),
            "lengths one short": _one_short,
            "lengths one too far": _one_far,
            "last element unwritten": _last_unwritten,
        },
        op=torch.ops.medmo_kernels.decode_attention.default,
        op_arguments=_op_arguments,
        kernel_sizes={
            "plain, room behind the tokens, one part": Size([(0, 70), (0, 3), (0, 0)], 130, (4, 2, 64)),
            "plain, three parts": Size([(0, 130), (70, 200), (3, 3)], 200, (4, 2, 64), num_splits=3),
            "prompts of 130, 0, 65 and 9, one unread, two parts": Size(
                [(0, 0), (0, 2), (2, 3), (0, 1), (0, 3), (1, 2), (0, 3)], 3, (6, 2, 16), [130, 0, 65, 9],
                [0, 0, 0, 1, 1, 3, 3], num_splits=2,
            ),
            "prompts in order": _group(16, 2, 1, (4, 1, 32), length=20),
            "prompts shuffled, head_dim 72": Size(
                [(0, 2), (0, 3), (0, 0), (1, 3)], 3, (3, 1, 72), [2, 8, 1], [2, 0, 2, 1]
            ),
            "prompts, no own tokens": Size([(0, 0)] * 3, 0, (4, 2, 32), [5, 3], [0, 0, 1], bounded=False),
        },  # fmt: skip
        choices=choices,
        back_ends=BACK_ENDS,
        shape_class=_shape_class,
        compile=Compile(
            sizes={
                "8B, 1 row x 4096, plain": (Size([(0, 4096)], 4096, GQA_8B, bounded=False), torch.bfloat16),
                "8B, 4 rows, left padding": (Size([(9, 999)] * 4, 1024, GQA_8B), torch.bfloat16),
                "8B, 8 rows, room for 4,096": (Size([(0, 700)] * 8, 4096, GQA_8B), torch.bfloat16),
                "8B, 8 rows, room for 128, one part": (Size([(0, 70)] * 8, 128, GQA_8B), torch.bfloat16),
                "8B, 8 prompts, 8 rows each, room": (_group(64, 8, 64, GQA_8B, room=192), torch.bfloat16),
                "8B, 8 prompts, 1 row each": (_group(8, 8, 64, GQA_8B), torch.bfloat16),
                "8B, 8 prompts, 8 rows each": (_group(64, 8, 64, GQA_8B), torch.bfloat16),
                "8B, 8 prompts, 50 rows": (_group(50, 8, 64, GQA_8B), torch.bfloat16),
                "head_dim 64, 1 row, plain": (Size([(0, 1024)], 1024, (16, 4, 64), bounded=False), torch.bfloat16),
                "head_dim 64, 4 prompts, 8 rows each": (_group(32, 4, 64, (16, 4, 64)), torch.bfloat16),
                "head_dim 64, 4 prompts, 30 rows": (_group(30, 4, 64, (16, 4, 64)), torch.bfloat16),
            },
            gate=_gate,
            kinds=_kinds,
        ),
        bench=Bench(
            sizes={
                "64 rows x 4,096, plain": Size([(0, 4096)] * 64, 4096, GQA_8B, bounded=False),
                "8 prompts x 8 rows, 4,096 + 128": _group(64, 8, 128, GQA_8B, length=4096),
                "1 row x 4,096, plain": Size([(0, 4096)], 4096, GQA_8B, bounded=False),
                "8 rows x 4,096, plain": Size([(0, 4096)] * 8, 4096, GQA_8B, bounded=False),
                "1 prompt x 8 rows, 1,600 + 200": _group(8, 1, 200, GQA_8B, length=1600),
                "8 rows, 1,024 of room for 4,096": Size([(0, 1024)] * 8, 4096, GQA_8B),
                "64 rows, 512 to 4,096, padded": Size(
                    [(64 * (row % 4), 512 + 56 * row) for row in range(64)], 4096, GQA_8B
                ),
            },
            cpu_sizes={
                "1 row x 512, plain": Size([(0, 512)], 512, GQA_8B, bounded=False),
                "8 rows x 512, plain": Size([(0, 512)] * 8, 512, GQA_8B, bounded=False),
                "1 prompt x 8 rows, 512 + 64": _group(8, 1, 64, GQA_8B, length=512),
                "8 rows, 128 of room for 512": Size([(0, 128)] * 8, 512, GQA_8B),
            },
            num_bytes=_bytes,
            num_flops=_flops,
        ),
    ),
)

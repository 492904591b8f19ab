"""Cases of attention for the walker, the compiler gate and the benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..spec import Arguments, Bench, Compile, Gate, OpSpec, Tolerance, tensor_bytes
from .op import BACK_ENDS, HEAD_DIMS, _attention, attention, choices, shape_class
from .reference import attention_reference, dense_attention, turned, visible_pairs

MAX_STACK = {"_backward_key": 24, "_backward_query": 24}
"""Bytes of stack at head_dim 128, for triton 3.6 alone, whose loops themselves spill nothing.

On sm_100 it keeps two programs on a multiprocessor (128 registers) at the price of two to twelve spills, and on sm_90
the query gradient with shared prompts has ten; triton 3.9 needs none.
"""


class Size(NamedTuple):
    """One packing.

    Attributes:
        lengths: tokens of each segment.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: width of a head.
        causal: whether tokens see only those before them.
        prompts: prompt of each segment, or None for none at all.
        rotary: whether queries and keys are turned by rotary positions.
    """

    lengths: Sequence[int]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    causal: bool
    prompts: Sequence[int] | None = None
    rotary: bool = False


def _case(size: Size, generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    total = sum(size.lengths)

    def heads(count: int) -> Tensor:
        return torch.randn(total, count, size.head_dim, generator=generator).to(dtype)

    angles = torch.rand(total, size.head_dim // 2, generator=generator) * 6.3
    return {
        "query": heads(size.num_heads),
        "key": heads(size.num_kv_heads),
        "value": heads(size.num_kv_heads),
        "cu_seqlens": torch.tensor([0, *size.lengths]).cumsum(0).to(torch.int32),
        "causal": size.causal,
        "prompt_of": None if size.prompts is None else torch.tensor(size.prompts, dtype=torch.int32),
        "rope": (angles.cos(), angles.sin()) if size.rotary else None,
    }


def _op_arguments(arguments: Arguments) -> Arguments:
    cos, sin = arguments["rope"] or (None, None)
    names = ("query", "key", "value", "cu_seqlens", "prompt_of")
    scale = arguments["query"].shape[-1] ** -0.5
    plain = {name: arguments[name] for name in names}
    return {**plain, "cos": cos, "sin": sin, "causal": arguments["causal"], "scale": scale}


def _bytes(arguments: Arguments) -> float:
    """Count queries, keys, values and rotary tables, read once, and the output, written once."""
    tables = sum(table.numel() * table.element_size() for table in arguments["rope"] or ())
    query = arguments["query"]
    return tensor_bytes(arguments) + tables + query.numel() * query.element_size()


def _flops(arguments: Arguments) -> float:
    """Count two matrix products; causal pairs by half, the prompt of a branch whole."""
    _, num_heads, head_dim = arguments["query"].shape
    lengths = arguments["cu_seqlens"].diff().double()
    pairs = (lengths.square() * (0.5 if arguments["causal"] else 1.0)).sum()
    if arguments["prompt_of"] is not None:
        prompts = arguments["prompt_of"].long()
        pairs = pairs + (lengths * lengths[prompts.clamp(min=0)] * (prompts >= 0)).sum()
    return 4.0 * pairs.item() * num_heads * head_dim


def _backward_flops(arguments: Arguments) -> float:
    """Count four products, twice the forward's; the scores that a kernel computes again are not counted."""
    return 2.0 * _flops(arguments)


def _checked(size: Size) -> Size:
    """Shorten all segments by one ratio where the reference's pairs of all tokens would not fit."""
    share = MOST_CHECKED / max(sum(size.lengths), 1)
    return size if share >= 1 else size._replace(lengths=[math.ceil(length * share) for length in size.lengths])


def _shape_class(arguments: Arguments) -> str:
    head_dim, prefix, rotary = arguments["query"].shape[2], arguments["prompt_of"] is not None, arguments["rope"]
    return shape_class(head_dim, arguments["causal"], prefix, rotary is not None)


def _gate(kernel: str, constants: Mapping[str, Any]) -> Gate:
    if kernel == "_rotate" or constants["BLOCK_M"] < 64 and constants["BLOCK_N"] < 64:
        return Gate()  # no products, or those of fp32, which have no such instructions
    return Gate(hgmma=True, max_stack=MAX_STACK.get(kernel, 0) if constants["D"] == 128 else 0)


def _one_too_far(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool, **rest: Any) -> Tensor:
    """Let every token see the next one too."""
    visible = visible_pairs(query, cu_seqlens, causal, rest["prompt_of"])
    visible = visible | visible.roll(1, dims=1) if visible.shape[0] else visible
    cos, sin = rest["rope"] or (None, None)
    return dense_attention(query, key, value, visible, query.shape[-1] ** -0.5, cos, sin)[0]


def _key_not_turned(**arguments: Any) -> Tensor:
    if arguments["rope"] is None:
        return attention(**arguments)
    cos, sin = arguments["rope"]
    return attention(**{**arguments, "query": turned(arguments["query"], cos, sin), "rope": None})


def _prompt_learns_from_itself_only(**arguments: Any) -> Tensor:
    """Drop what the branches add to the gradients of their prompt."""
    out = attention(**arguments)
    if arguments["prompt_of"] is None:
        return out
    branch = (arguments["prompt_of"] >= 0).repeat_interleave(arguments["cu_seqlens"].diff().long())[:, None, None]
    fixed = {name: torch.where(branch, arguments[name], arguments[name].detach()) for name in ("key", "value")}
    return torch.where(branch, attention(**{**arguments, **fixed}), out)


FAULTS = {
    "causal flag flipped": lambda **a: attention(**{**a, "causal": not a["causal"], "prompt_of": None}),
    "prompts ignored": lambda **a: attention(**{**a, "prompt_of": None}),
    "one token too far": _one_too_far,
    "rotation ignored": lambda **a: attention(**{**a, "rope": None}),
    "key not turned": _key_not_turned,
    "prompt learns from itself only": _prompt_learns_from_itself_only,
}

MOST_CHECKED = 2048
"""Tokens, about: with 32 heads the reference holds a gigabyte of float64 scores several times."""
TEXT = (32, 8, 128, True)
SHARED = Size([1600, *[200] * 8], *TEXT, [-1, *[0] * 8])
GROUPS = Size([1600, *[200] * 8] * 8, *TEXT, [p for j in range(8) for p in (-1, *[9 * j] * 8)])
VISION = {"8B": (16, 16, 72, False), "4B": (16, 16, 64, False)}
PATCHES = {1280: 6400, 512: 1024, 768: 2304}
"""Of a square image, by its side in pixels."""
_IMAGES = {
    f"vision {model}, {side} px, {count} image{'s' * (count > 1)}": Size(
        [PATCHES[side]] * count, *VISION[model], rotary=True
    )
    for side in PATCHES
    for count in (8, 1)
    for model in VISION
}
_FIRST = "vision 8B, 1280 px, 8 images"

_MODELS = {
    "vision 8B": (Size([1024, 600], *VISION["8B"], rotary=True), torch.bfloat16),
    "vision 4B": (Size([1024, 600], *VISION["4B"], rotary=True), torch.bfloat16),
    "head_dim 72, no rotation": (Size([1024, 600], 16, 16, 72, False), torch.bfloat16),
    "head_dim 80": (Size([1024, 600], 16, 16, 80, False), torch.bfloat16),
    "text": (Size([1024, 600], *TEXT), torch.bfloat16),
    "text, shared prompt": (SHARED, torch.bfloat16),
    "fp32": (Size([100, 40], 2, 1, 128, True, [-1, 0], True), torch.float32),
}


def _other_classes() -> dict[str, tuple[Size, torch.dtype]]:
    """Return a size of every class of shapes that none of `_MODELS` belongs to in 16 bits."""
    sizes = [
        Size([160, 96], *heads, head_dim, causal, prompts, rotary)
        for head_dim in HEAD_DIMS
        for heads, causal, prompts in (((16, 16), False, None), ((8, 2), True, None), ((8, 2), True, [-1, 0]))
        for rotary in (False, True)
    ]
    known = {_class_of(size) for size, dtype in _MODELS.values() if dtype == torch.bfloat16}
    return {_class_of(size): (size, torch.bfloat16) for size in sizes if _class_of(size) not in known}


def _class_of(size: Size) -> str:
    return shape_class(size.head_dim, size.causal, size.prompts is not None, size.rotary)


def _kinds(size: Size) -> dict[str, Size]:
    """Return packings of one and of several segments, of lengths that 16 divides and does not divide."""
    packings = {"one segment": [160], "one odd segment": [161], "several": [32, 48, 80], "several odd": [31, 1, 0, 80]}
    prompts = [-1, 0, 0, 0]
    return {
        name: size._replace(lengths=lengths, prompts=None if size.prompts is None else prompts[: len(lengths)])
        for name, lengths in packings.items()
    }


SPECS = (
    OpSpec(
        name="attention",
        function=attention,
        reference=attention_reference,
        make=_case,
        sizes={
            "no token": Size([0], 2, 1, 64, True),
            "one token": Size([1], 2, 2, 64, True),
            "grouped, ragged": Size([7, 1, 0, 12, 11], 4, 2, 72, True),
            "equal": Size([5, 5, 5], 2, 1, 64, False),
            "ragged, bidirectional, rotary": Size([3, 9, 1, 3], 2, 2, 72, False, rotary=True),
            "causal, rotary": Size([6, 0, 5], 2, 1, 80, True, rotary=True),
            "prompts": Size([9, 1, 4, 0, 5, 0, 3, 6, 2, 2], 4, 2, 128, True, [-1, 0, 0, 0, -1, -1, 5, -1, 7, 7]),
            "prompts, rotary": Size([5, 3, 3], 2, 2, 72, True, [-1, 0, 0], True),
        },
        tolerance={
            torch.float64: Tolerance(1e-12, "another order of summation"),
            torch.float32: Tolerance(2e-6, "softmax over at most 80 keys in another order"),
            torch.float16: Tolerance(1e-3, "weights and slopes are rounded to fp16 before their products"),
            torch.bfloat16: Tolerance(8e-3, "weights and slopes are rounded to bf16 before their products"),
        },
        differentiable=("query", "key", "value"),
        faults=FAULTS,
        op=_attention,
        op_arguments=_op_arguments,
        kernel_sizes={
            "64, bidirectional, rotary": Size([10, 0, 19], 1, 1, 64, False, rotary=True),
            "72, bidirectional, rotary": Size([18, 1], 2, 1, 72, False, rotary=True),
            "80, causal": Size([17, 0, 8], 2, 1, 80, True),
            "128, prompts": Size([19, 3, 0, 9, 4], 2, 1, 128, True, [-1, 0, 0, 0, -1]),
            "64, more than a block": Size([131, 5], 1, 1, 64, True),
        },
        choices=choices,
        back_ends=BACK_ENDS,
        shape_class=_shape_class,
        compile=Compile(sizes=_MODELS, classes=_other_classes(), gate=_gate, kinds=_kinds),
        bench=Bench(
            sizes={
                _FIRST: _IMAGES[_FIRST],
                "text, 8 prompts, 8 answers each": GROUPS,
                **_IMAGES,
                "vision 8B, ragged, 8 images": Size(
                    [6400, 1024, 256, 2304, 1600, 400, 4096, 576], *VISION["8B"], rotary=True
                ),
                "text, 1 prompt, 8 answers": SHARED,
                "text, 2 x 2048": Size([2048] * 2, *TEXT),
                "text, ragged, 8 samples": Size([1800, 456, 264, 776, 600, 300, 1224, 344], *TEXT),
                "head_dim 80, 4 x 1600": Size([1600] * 4, 16, 16, 80, False),
            },
            cpu_sizes={
                "4 vision heads of 64, 256 tokens": Size([256], 4, 4, 64, False, rotary=True),
                "4 vision heads of 64, 1,024 tokens": Size([1024], 4, 4, 64, False, rotary=True),
                "4 vision heads of 72, ragged": Size([256, 64, 144, 100], 4, 4, 72, False, rotary=True),
                "text, 1 prompt of 256, 8 answers of 32": Size([256, *[32] * 8], 8, 2, 128, True, [-1, *[0] * 8]),
            },
            num_bytes=_bytes,
            num_flops=_flops,
            num_backward_flops=_backward_flops,
            checked_size=_checked,
        ),
    ),
)

"""Cases of qk_norm_rope and its forms in place and for a cache for the walkers, the compiler gate and the benchmark."""

from typing import Any

import torch
from torch import Tensor

from ..spec import Arguments, Bench, Compile, OpSpec, Tolerance
from .op import (
    BACK_ENDS,
    _qk_norm_rope,
    _qk_norm_rope_,
    _qk_norm_rope_cache_,
    choices,
    choices_in_place,
    choices_into_cache,
    qk_norm_rope,
    qk_norm_rope_,
    qk_norm_rope_cache_,
    shape_class,
)
from .reference import qk_norm_rope_cache_reference, qk_norm_rope_reference

Size = tuple[int, int, int, int, float]  # tokens, query heads, key heads, head width, scale of the inputs
CacheSize = tuple[Size, tuple[int, ...], int]  # tokens' columns (one may serve all), columns of the caches

SMALL = 1e-3
"""At this scale the mean of squares equals eps: an eps forgotten or misplaced shows."""


def _make(size: Size, generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    num_tokens, num_heads, num_kv_heads, head_dim, scale = size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    angles = torch.rand(num_tokens, head_dim // 2, generator=generator) * 6.3
    return {
        "query": (normal(num_tokens, num_heads, head_dim) * scale).to(dtype),
        "key": (normal(num_tokens, num_kv_heads, head_dim) * scale).to(dtype),
        "query_weight": (1 + 0.2 * normal(head_dim)).to(dtype),
        "key_weight": (1 + 0.2 * normal(head_dim)).to(dtype),
        "cos": angles.cos(),
        "sin": angles.sin(),
    }


def _make_for_cache(size: CacheSize, generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    heads, columns, num_columns = size
    made = _make(heads, generator, dtype)
    num_tokens, _, num_kv_heads, head_dim, _ = heads

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    places = torch.tensor(columns, dtype=torch.int32).expand(num_tokens).contiguous()
    return {
        **{name: made[name] for name in ("query", "key")},
        "value": normal(num_tokens, num_kv_heads, head_dim),
        **{name: made[name] for name in ("query_weight", "key_weight", "cos", "sin")},
        "key_cache": normal(num_tokens, num_kv_heads, num_columns, head_dim),
        "value_cache": normal(num_tokens, num_kv_heads, num_columns, head_dim),
        "columns": places,
    }


def _for_cache_on_copies(**named: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Write into copies of queries and caches, as the walkers keep their arguments."""
    written = {name: named[name].clone() for name in ("query", "key_cache", "value_cache")}
    return qk_norm_rope_cache_(**{**named, **written}), written["key_cache"], written["value_cache"]


def _next_column(**named: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _for_cache_on_copies(**{**named, "columns": named["columns"] + 1})


def _one_column(**named: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Write all rows where the first one writes."""
    return _for_cache_on_copies(**{**named, "columns": named["columns"][:1].expand_as(named["columns"])})


def _key_unturned(**named: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, keys, values = _for_cache_on_copies(**named)
    plain = {**named, "cos": torch.ones_like(named["cos"]), "sin": torch.zeros_like(named["sin"])}
    return query, _for_cache_on_copies(**plain)[1], values


def _op_arguments_for_cache(arguments: Arguments) -> Arguments:
    order = ("query", "key", "query_weight", "key_weight", "cos", "sin")
    rest = ("value", "key_cache", "value_cache", "columns")
    return {**{n: arguments[n] for n in order}, "eps": 1e-6, **{n: arguments[n] for n in rest}}


def _num_bytes_for_cache(arguments: Arguments) -> float:
    """Count what the form in place moves, and one read and one write of the values."""
    return _num_bytes(arguments) + 2.0 * arguments["value"].numel() * arguments["value"].element_size()


def _on_copies(query: Tensor, key: Tensor, *rest: Tensor, **named: Any) -> tuple[Tensor, Tensor]:
    """Run the form in place on copies, as the walkers keep their arguments."""
    return qk_norm_rope_(query.clone(), key.clone(), *rest, **named)


def _num_bytes(arguments: Arguments) -> float:
    """Count one read and one write of the heads, and one read of the rest."""
    heads = sum(arguments[name].numel() * arguments[name].element_size() for name in ("query", "key"))
    rest = ("query_weight", "key_weight", "cos", "sin")
    return 2.0 * heads + sum(arguments[name].numel() * arguments[name].element_size() for name in rest)


def _num_flops(arguments: Arguments) -> float:
    """Count square and sum, two scalings, and three operations of the rotation per element."""
    return 7.0 * (arguments["query"].numel() + arguments["key"].numel())


def _num_backward_bytes(arguments: Arguments) -> float:
    """Count one read of the heads and of their outputs' gradients, one write and one read of the rest."""
    heads = sum(arguments[name].numel() * arguments[name].element_size() for name in ("query", "key"))
    return _num_bytes(arguments) + heads


_TOLERANCE = {
    torch.float64: Tolerance(1e-12, "sums in another order, the weight folded into the table"),
    torch.float32: Tolerance(2e-6, "sums of at most 256 squares, and of some hundred rows for the weights, in fp32"),
    torch.float16: Tolerance(1e-3, "one rounding to 11 bits where the reference makes one too, at another fp32 value"),
    torch.bfloat16: Tolerance(8e-3, "one rounding to 8 bits where the reference makes one too, at another fp32 value"),
}

_FAULTS = {
    "halves turned the wrong way": lambda **kwargs: qk_norm_rope(**{**kwargs, "sin": -kwargs["sin"]}),
    "eps dropped": lambda **kwargs: qk_norm_rope(**kwargs, eps=1e-12),
    "weights exchanged": lambda **kwargs: qk_norm_rope(
        **{**kwargs, "query_weight": kwargs["key_weight"], "key_weight": kwargs["query_weight"]}
    ),
    "weight dropped from the gradient": lambda **kwargs: _unweighted_gradient(**kwargs),
    "mean taken as constant": lambda **kwargs: _constant_norm(**kwargs),
}


def _unweighted_gradient(**kwargs: Any) -> tuple[Tensor, Tensor]:
    """Be right forward, and pass queries the gradient they would have under weights of 1."""
    plain = {**kwargs, "query_weight": torch.ones_like(kwargs["query_weight"])}
    right, wrong = qk_norm_rope(**{**kwargs, "query": kwargs["query"].detach()}), qk_norm_rope(**plain)
    return right[0] + wrong[0] - wrong[0].detach(), right[1]


def _constant_norm(**kwargs: Any) -> tuple[Tensor, Tensor]:
    """Be right forward, and forget backward that the root mean square depends on the key."""
    key = kwargs["key"]
    scale = key.detach().square().mean(-1, keepdim=True).add(1e-6).sqrt()
    right = qk_norm_rope(**{**kwargs, "key": key.detach()})
    units = {**kwargs, "key": (key / scale).detach()}
    weighted = (key / scale) * kwargs["key_weight"].detach()
    first, second = weighted.chunk(2, dim=-1)
    cos, sin = (units[name].to(key.dtype).unsqueeze(1) for name in ("cos", "sin"))
    wrong = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return right[0], right[1] + wrong - wrong.detach()


def _kinds(size: Size) -> dict[str, Size]:
    """Return few tokens, each a run, and so many that a program walks over several; 16 divides neither number."""
    return {"few tokens": (7, *size[1:]), "long runs": (4101, *size[1:])}


SPECS = (
    OpSpec(
        name="qk_norm_rope",
        function=qk_norm_rope,
        reference=qk_norm_rope_reference,
        make=_make,
        sizes={
            "none": (0, 4, 2, 64, 1.0),
            "one": (1, 1, 1, 2, 1.0),
            "text heads": (5, 8, 2, 128, 1.0),
            "width 72, odd heads": (7, 5, 3, 72, 1.0),
            "width 80": (3, 4, 4, 80, 3.0),
            "widest": (2, 2, 1, 256, 1.0),
            "small numbers": (9, 4, 2, 64, SMALL),
        },
        tolerance=_TOLERANCE,
        differentiable=("query", "key", "query_weight", "key_weight"),
        faults=_FAULTS,
        op=_qk_norm_rope,
        op_arguments=lambda arguments: {**arguments, "eps": 1e-6},
        kernel_sizes={
            "none": (0, 4, 2, 64, 1.0),
            "one": (1, 1, 1, 2, 1.0),
            "text heads": (3, 9, 2, 128, 1.0),
            "width 72": (2, 5, 3, 72, 1.0),
            "widest": (2, 5, 1, 256, 1.0),
            "small numbers": (2, 4, 2, 64, SMALL),
        },
        choices=choices,
        back_ends=BACK_ENDS,
        shape_class=lambda arguments: shape_class(arguments["query"]),
        compile=Compile(
            sizes={
                "text": ((1800, 32, 8, 128, 1.0), torch.bfloat16),
                "width 72": ((1800, 16, 16, 72, 1.0), torch.bfloat16),
                "width 64": ((1800, 16, 8, 64, 1.0), torch.bfloat16),
                "width 32": ((1800, 8, 4, 32, 1.0), torch.bfloat16),
                "width 256": ((1800, 16, 2, 256, 1.0), torch.bfloat16),
                "text, fp32": ((1800, 32, 8, 128, 1.0), torch.float32),
            },
            kinds=_kinds,
        ),
        bench=Bench(
            sizes={
                "text, 14,400 tokens": (14400, 32, 8, 128, 1.0),
                "text, 1,800 tokens": (1800, 32, 8, 128, 1.0),
                "decode, 64 sequences": (64, 32, 8, 128, 1.0),
                "decode, 8 sequences": (8, 32, 8, 128, 1.0),
            },
            cpu_sizes={"text, 64 tokens": (64, 32, 8, 128, 1.0), "text, 512 tokens": (512, 32, 8, 128, 1.0)},
            num_bytes=_num_bytes,
            num_flops=_num_flops,
            num_backward_bytes=_num_backward_bytes,
        ),
    ),
    OpSpec(
        name="qk_norm_rope_",
        function=_on_copies,
        reference=qk_norm_rope_reference,
        make=_make,
        sizes={
            "none": (0, 4, 2, 64, 1.0),
            "text heads": (5, 8, 2, 128, 1.0),
            "width 72, odd heads": (7, 5, 3, 72, 1.0),
        },
        tolerance=_TOLERANCE,
        op=_qk_norm_rope_,
        op_arguments=lambda arguments: {**arguments, "eps": 1e-6},
        kernel_sizes={"text heads": (2, 8, 2, 128, 1.0), "width 72": (3, 5, 3, 72, 1.0)},
        choices=choices_in_place,
        back_ends=BACK_ENDS,
        shape_class=lambda arguments: shape_class(arguments["query"]),
        compile=Compile(
            sizes={"text": ((1800, 32, 8, 128, 1.0), torch.bfloat16)},
            kinds=_kinds,
        ),
        bench=Bench(
            sizes={
                "decode, 64 sequences": (64, 32, 8, 128, 1.0),
                "decode, 8 sequences": (8, 32, 8, 128, 1.0),
                "decode, 1 sequence": (1, 32, 8, 128, 1.0),
            },
            cpu_sizes={"decode, 8 sequences": (8, 32, 8, 128, 1.0)},
            timed=qk_norm_rope_,
            timed_arguments=lambda a: {**a, "query": a["query"].clone(), "key": a["key"].clone()},
            num_bytes=_num_bytes,
            num_flops=_num_flops,
        ),
    ),
    OpSpec(
        name="qk_norm_rope_cache_",
        function=_for_cache_on_copies,
        reference=qk_norm_rope_cache_reference,
        make=_make_for_cache,
        sizes={
            "none": ((0, 4, 2, 64, 1.0), (0,), 3),
            "all in one column": ((5, 8, 2, 128, 1.0), (2,), 3),
            "each in its own, two in none": ((5, 5, 3, 72, 1.0), (4, 0, -1, 6, 3), 6),
            "a cache of nothing": ((2, 2, 1, 16, 1.0), (0,), 0),
        },
        tolerance=_TOLERANCE,
        faults={
            "the column after": _next_column,
            "one column for all": _one_column,
            "keys not turned": _key_unturned,
        },
        op=_qk_norm_rope_cache_,
        op_arguments=_op_arguments_for_cache,
        kernel_sizes={
            "all in one column": ((2, 8, 2, 128, 1.0), (2,), 3),
            "each in its own, two in none": ((5, 5, 3, 72, 1.0), (4, 0, -1, 6, 3), 6),
        },
        choices=choices_into_cache,
        back_ends=BACK_ENDS,
        shape_class=lambda arguments: shape_class(arguments["query"]),
        compile=Compile(
            sizes={
                "text": (((8, 32, 8, 128, 1.0), (700,), 4096), torch.bfloat16),
                "width 64": (((8, 16, 8, 64, 1.0), (700,), 1024), torch.bfloat16),
            },
            kinds=lambda size: {"many odd rows": ((65, *size[0][1:]), (3,), 31)},
        ),
        bench=Bench(
            sizes={
                "decode, 64 sequences": ((64, 32, 8, 128, 1.0), (700,), 1024),
                "decode, 8 sequences": ((8, 32, 8, 128, 1.0), (700,), 1024),
                "decode, 1 sequence": ((1, 32, 8, 128, 1.0), (700,), 1024),
            },
            cpu_sizes={"decode, 8 sequences": ((8, 32, 8, 128, 1.0), (100,), 256)},
            timed=qk_norm_rope_cache_,
            timed_arguments=lambda a: {**a, "query": a["query"].clone()},
            num_bytes=_num_bytes_for_cache,
            num_flops=_num_flops,
        ),
    ),
)

"""What the walker and the benchmark know of attention."""

from collections.abc import Sequence

import torch

from ..spec import Arguments, OpSpec, Tolerance
from .op import attention
from .reference import attention_reference

Size = tuple[Sequence[int], int, int, int, bool]  # document lengths, query heads, key/value heads, head width, causal


def _case(size: Size, generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    lengths, num_heads, num_kv_heads, head_dim, causal = size
    total = sum(lengths)

    def heads(count: int) -> torch.Tensor:
        return torch.randn(total, count, head_dim, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "query": heads(num_heads),
        "key": heads(num_kv_heads),
        "value": heads(num_kv_heads),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "causal": causal,
    }


def _flops(arguments: Arguments) -> float:
    """Count two matrix products; a causal document needs half of each."""
    _, num_heads, head_dim = arguments["query"].shape
    pairs = arguments["cu_seqlens"].diff().double().square().sum().item()
    return 4.0 * pairs * num_heads * head_dim * (0.5 if arguments["causal"] else 1.0)


SPECS = (
    OpSpec(
        name="attention",
        function=attention,
        reference=attention_reference,
        make=_case,
        sizes={
            "one token": ([1], 2, 2, 64, True),
            "grouped, ragged": ([7, 1, 0, 12, 11], 4, 2, 72, True),
            "equal": ([5, 5, 5], 2, 1, 64, False),
            "ragged, bidirectional": ([3, 9, 1, 3], 2, 2, 72, False),
        },
        benchmark_sizes={
            "text 8 x 1024": ([1024] * 8, 32, 8, 128, True),
            "vision 4 x 4096": ([4096] * 4, 16, 16, 72, False),
        },
        tolerance={
            torch.float64: Tolerance(1e-12, "another order of summation"),
            torch.float32: Tolerance(2e-6, "softmax over at most 12 keys in another order"),
        },
        differentiable=("query", "key", "value"),
        num_flops=_flops,
    ),
)

"""Back ends of others that the table may name: torch's varlen attention (FA2, FA3) and xformers. CUDA only.

Neither knows shared prompts or rotary positions: queries and keys are turned before, prompts are refused.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .. import runtime

MAX_HEAD_DIM = 256


def refusal(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, prefix: bool) -> str:
    """Say why `varlen` or `xformers` cannot serve such tensors, or return an empty text."""
    if device.type != "cuda":
        return "no CUDA device"
    if prefix:
        return "it has no shared prompts"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it takes 16-bit tensors, not {dtype}"
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        return f"it takes head widths that are multiples of 8 up to {MAX_HEAD_DIM}, not {head_dim}"
    return _missing(backend)


@lru_cache(maxsize=4)
def _missing(backend: str) -> str:
    if backend == "xformers":
        return "" if importlib.util.find_spec("xformers") else runtime.not_installed(backend)
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    return "" if torch.backends.cuda.is_flash_attention_available() else "torch was built without flash attention"


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool, scale: float, max_seqlen: int | None
) -> Tensor:
    """Attend through `torch.nn.attention.varlen`.

    Args:
        query: (T, H, D) fp16 or bf16 on CUDA.
        key: (T, K, D).
        value: (T, K, D).
        cu_seqlens: (s + 1,) int32 on the same device.
        causal: whether a token sees only itself and the tokens before it.
        scale: factor on the scores.
        max_seqlen: the longest segment; None: T, which costs empty blocks but no host synchronisation.

    Returns:
        (T, H, D).
    """
    attend, options = _varlen(query.shape[1] != key.shape[1])
    longest = max_seqlen or query.shape[0]
    window = (-1, 0) if causal else (-1, -1)
    return attend(
        query, key, value, cu_seqlens, cu_seqlens, longest, longest, scale=scale, window_size=window, **options
    )


@lru_cache(maxsize=2)
def _varlen(grouped: bool) -> tuple[Callable[..., Tensor], dict[str, bool]]:
    """Return the function, and the option that announces grouped heads: torch 2.11 takes them without it."""
    attend = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    has_option = "enable_gqa" in inspect.signature(attend).parameters
    return attend, {"enable_gqa": grouped} if has_option else {}


def xformers_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool, scale: float
) -> Tensor:
    """Attend through xformers' block-diagonal masks, which read the boundaries on the host.

    Shapes: as `varlen_attention`.
    """
    fmha = importlib.import_module("xformers.ops.fmha")
    form = fmha.attn_bias.BlockDiagonalCausalMask if causal else fmha.attn_bias.BlockDiagonalMask
    bias = form.from_seqlens(cu_seqlens.diff().tolist())
    groups = query.shape[1] // key.shape[1]
    q, k, v = query[None], key[None], value[None]
    if groups > 1:  # (1, T, K, H / K, D), the keys and values expanded without a copy
        q = q.unflatten(2, (key.shape[1], groups))
        k, v = (x[:, :, :, None].expand(-1, -1, -1, groups, -1) for x in (k, v))
    return fmha.memory_efficient_attention(q, k, v, attn_bias=bias, scale=scale).reshape(query.shape)

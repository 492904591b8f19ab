"""Self-attention of the vision tower and of the decoder.

Shapes: T packed tokens, H query heads, K key/value heads, D head width, n documents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medmo_kernels.attention import attention
from medmo_kernels.qk_norm_rope import qk_norm_rope, qk_norm_rope_, qk_norm_rope_cache_

from ..errors import InputError
from .norm import RMSNorm
from .rope import RopeTable


class PackedAttention(nn.Module):
    """The op `attention` as a module without parameters.

    A module so that `blocks.set_forward` can have the compiler stop here and go on behind: tensors decide which back
    end serves them, and some are read on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.function: Callable[..., Tensor] = attention

    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        """Attend; arguments and result are those of `medmo_kernels.attention.attention`."""
        return self.function(*arguments, **options)


class VisionAttention(nn.Module):
    """Attention in both directions within each image (or frame), with 2-D rotary positions.

    State: `qkv.{weight,bias}`, `proj.{weight,bias}`.

    Args:
        embed_dim: width in and out.
        num_heads: heads; `embed_dim` is a multiple of it.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise InputError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, device=device, dtype=dtype)
        self.proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.attend = PackedAttention()

    def forward(self, x: Tensor, cu_seqlens: Tensor, table: RopeTable | None = None) -> Tensor:
        """Mix the tokens of each segment.

        Args:
            x: (T, embed_dim).
            cu_seqlens: (n + 1,) int32 boundaries of the segments.
            table: rotary table of (T, D / 2), or None for learned positions alone.

        Returns:
            (T, embed_dim).
        """
        q_THD, k_THD, v_THD = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(1)
        return self.proj(self.attend(q_THD, k_THD, v_THD, cu_seqlens, False, rope=table).flatten(1))


class TextAttention(nn.Module):
    """Causal attention within each document: grouped key/value heads, normalised queries and keys, M-RoPE.

    State: `{q,k,v,o}_proj.weight` (and biases if asked), `q_norm.weight`, `k_norm.weight`.

    Args:
        embed_dim: width in and out.
        num_heads: query heads; their joint width need not be `embed_dim`.
        num_kv_heads: key/value heads.
        head_dim: width of a head.
        eps: small number added inside the two norms.
        bias: give the four projections a bias.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        eps: float = 1e-6,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads % num_kv_heads:
            raise InputError(f"num_heads {num_heads} is not a multiple of num_kv_heads {num_kv_heads}")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.q_proj = nn.Linear(embed_dim, num_heads * head_dim, bias=bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(embed_dim, num_kv_heads * head_dim, bias=bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(embed_dim, num_kv_heads * head_dim, bias=bias, device=device, dtype=dtype)
        self.o_proj = nn.Linear(num_heads * head_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.q_norm = RMSNorm(head_dim, eps, device=device, dtype=dtype)
        self.k_norm = RMSNorm(head_dim, eps, device=device, dtype=dtype)
        self.attend = PackedAttention()

    def project(self, x: Tensor, table: RopeTable) -> tuple[Tensor, Tensor, Tensor]:
        """Make rotated queries and keys, and values: (T, H, D), (T, K, D), (T, K, D)."""
        q_THD, k_TKD, v_TKD = self._heads(x)
        # Nobody else holds the two projections: without gradients they are overwritten.
        norm_rope = qk_norm_rope if torch.is_grad_enabled() else qk_norm_rope_
        q_THD, k_TKD = norm_rope(q_THD, k_TKD, self.q_norm.weight, self.k_norm.weight, *table, eps=self.q_norm.eps)
        return q_THD, k_TKD, v_TKD

    def project_step(
        self, x: Tensor, table: RopeTable, key_cache: Tensor, value_cache: Tensor, columns: Tensor
    ) -> Tensor:
        """Make rotated queries of one token a row, and write its rotated keys and its values into caches.

        Args:
            x: (B, embed_dim).
            table: rotary table of (B, D / 2).
            key_cache: (B, K, S, D).
            value_cache: (B, K, S, D).
            columns: (B,) int32 column of each row's token.

        Returns:
            (B, H, D) queries.
        """
        q_BHD, k_BKD, v_BKD = self._heads(x)
        caches = key_cache, value_cache, columns
        norms = self.q_norm.weight, self.k_norm.weight
        return qk_norm_rope_cache_(q_BHD, k_BKD, v_BKD, *norms, *table, *caches, eps=self.q_norm.eps)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_THD = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))
        k_TKD = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        v_TKD = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        return q_THD, k_TKD, v_TKD

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        table: RopeTable,
        rows: Tensor | None = None,
        prompt_of: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Mix the tokens of each document.

        Args:
            x: (T, embed_dim).
            cu_seqlens: (n + 1,) int32 boundaries of the documents, best on the device of `x`.
            table: rotary table of (T, D / 2).
            rows: (R,) tokens whose result is wanted; None: all.
            prompt_of: (n,) the document whose tokens document j sees whole besides its own; -1: none. None: no sharing.
            max_seqlen: length of the longest document, where known.

        Returns:
            (T, embed_dim) or (R, embed_dim); and (T, H, D) rotated queries, (T, K, D) rotated keys, (T, K, D) values.
        """
        q_THD, k_TKD, v_TKD = self.project(x, table)
        out = self.attend(q_THD, k_TKD, v_TKD, cu_seqlens, True, prompt_of=prompt_of, max_seqlen=max_seqlen).flatten(1)
        return self.o_proj(out if rows is None else out[rows]), (q_THD, k_TKD, v_TKD)

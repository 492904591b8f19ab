"""The Qwen3 decoder with M-RoPE and deepstack additions.

Shapes: T packed tokens, B sequences in step-by-step decoding, E embedding width, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..generation.kv_cache import KeepKV, StepCache
from ..modules.attention import TextAttention
from ..modules.mlp import SwiGLU
from ..modules.norm import RMSNorm
from ..modules.rope import RopeTable, mrope_table


class DecoderLayer(nn.Module):
    """Causal attention and a gated feed-forward, each behind a norm and beside a residual.

    State: `input_layernorm`, `self_attn`, `post_attention_layernorm`, `mlp`.

    Args:
        embed_dim: width E.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: width of a head.
        mlp_dim: width of the feed-forward layer.
        eps: small number added inside the norms.
        bias: give the attention's projections a bias.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        mlp_dim: int,
        *,
        eps: float = 1e-6,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.self_attn = TextAttention(
            embed_dim, num_heads, num_kv_heads, head_dim, eps=eps, bias=bias, device=device, dtype=dtype
        )
        self.mlp = SwiGLU(embed_dim, mlp_dim, device=device, dtype=dtype)
        self.input_layernorm = RMSNorm(embed_dim, eps, device=device, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(embed_dim, eps, device=device, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        table: RopeTable,
        rows: Tensor | None = None,
        max_seqlen: int | None = None,
        prompt_of: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Transform (T, E) packed tokens, or only some of their rows; also return queries, keys and values."""
        mixed, qkv = self.self_attn(self.input_layernorm(x), cu_seqlens, table, rows, prompt_of, max_seqlen)
        x = (x if rows is None else x[rows]) + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), qkv

    def step(self, x: Tensor, table: RopeTable, cache: StepCache, index: int) -> Tensor:
        """Transform one token (B, E) of each sequence as layer `index`, which looks back into a cache."""
        query = self.self_attn.project_step(self.input_layernorm(x), table, *cache.place(index))
        x = x + self.self_attn.o_proj(cache.look_back(index, query).flatten(1))
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3Decoder(nn.Module):
    """Embeddings, layers and the final norm; the head is the model's.

    State: `embed_tokens.weight`, `layers.{i}.*`, `norm.weight`.

    Args:
        vocab_size: rows of the embedding.
        embed_dim: width E.
        depth: layers.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: width D of a head.
        mlp_dim: width of the feed-forward layers.
        rope_theta: base of the rotary frequencies.
        mrope_sections: frequencies that time, height and width own; they add up to D / 2.
        eps: small number added inside the norms.
        bias: give the attention's projections a bias.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        mlp_dim: int,
        rope_theta: float = 5_000_000.0,
        mrope_sections: Sequence[int] = (24, 20, 20),
        eps: float = 1e-6,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if 2 * sum(mrope_sections) != head_dim:
            raise InputError(f"mrope_sections {list(mrope_sections)} must add up to half of head_dim {head_dim}")
        self.head_dim, self.rope_theta, self.mrope_sections = head_dim, rope_theta, tuple(mrope_sections)
        self.num_kv_heads = num_kv_heads
        self.embed_tokens = nn.Embedding(vocab_size, embed_dim, device=device, dtype=dtype)
        self.layers = nn.ModuleList(
            DecoderLayer(
                embed_dim, num_heads, num_kv_heads, head_dim, mlp_dim, eps=eps, bias=bias, device=device, dtype=dtype
            )
            for _ in range(depth)
        )
        self.norm = RMSNorm(embed_dim, eps, device=device, dtype=dtype)

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        *,
        visual_index: Tensor | None = None,
        deepstack: Sequence[Tensor] = (),
        keep_kv: KeepKV | None = None,
        keep_qk: KeepKV | None = None,
        rows: Tensor | None = None,
        max_seqlen: int | None = None,
        prompt_of: Tensor | None = None,
    ) -> Tensor:
        """Run packed documents.

        Args:
            inputs_embeds: (T, E), visual tokens already in place.
            position_ids: (3, T).
            cu_seqlens: (n + 1,) int32 document boundaries.
            visual_index: (M,) positions of the visual tokens.
            deepstack: (M, E) additions to the visual tokens after the first layers, one per layer.
            keep_kv: function that receives every layer's keys and values.
            keep_qk: function that receives every layer's rotated queries and keys.
            rows: (R,) tokens whose result is wanted, repeated ones too; the last layer does its work for these only.
                None: all.
            max_seqlen: length of the longest document, where known.
            prompt_of: (n,) the document whose tokens document j sees whole besides its own; -1: none. None: no sharing.

        Returns:
            (T, E) or (R, E) hidden states after the final norm.
        """
        table = mrope_table(position_ids, self.head_dim, self.rope_theta, self.mrope_sections)
        x = inputs_embeds
        last = len(self.layers) - 1
        early_rows = rows if len(deepstack) <= last else None  # an addition after the last layer needs all rows
        for index, layer in enumerate(self.layers):
            wanted = early_rows if index == last else None
            x, (query, key, value) = layer(x, cu_seqlens, table, wanted, max_seqlen, prompt_of)
            if keep_kv is not None:
                keep_kv(index, key, value)
            if keep_qk is not None:
                keep_qk(index, query, key)
            del query, key, value  # not kept through the next layer
            if index < len(deepstack):
                assert visual_index is not None
                x = x.index_add(0, visual_index, deepstack[index].to(x.dtype))
        if rows is not None and early_rows is None:
            x = x[rows]
        return self.norm(x)

    def step(self, token_ids: Tensor, positions: Tensor, cache: StepCache) -> Tensor:
        """Run one text token of each sequence against a cache.

        Args:
            token_ids: (B,) tokens.
            positions: (B,) positions, the same on all three axes.
            cache: keys and values of the tokens before, which takes those of these tokens.

        Returns:
            (B, E) hidden states after the final norm.
        """
        table = mrope_table(positions.expand(3, -1), self.head_dim, self.rope_theta, self.mrope_sections)
        x = self.embed_tokens(token_ids)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            x = layer.step(x, table, cache, index)
        return self.norm(x)

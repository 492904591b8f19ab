"""Packed attention by others. None but FlexAttention and SDPA knows shared prompts; none turns queries and keys itself.

Each is timed with the rotation that its user would run before it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from medmo_kernels.attention import peers as back_ends
from medmo_kernels.attention.rotary import rotated
from medmo_kernels.attention.sdpa import sdpa_attention
from medmo_kernels.spec import Arguments

from .peer import Peer, compiled

Rope = tuple[Tensor, Tensor] | None


def _turned(query: Tensor, key: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    return (query, key) if rope is None else (rotated(query, rope), rotated(key, rope))


def _with_longest(arguments: Arguments) -> Arguments:
    if arguments["prompt_of"] is not None:
        raise NotImplementedError("it has no shared prompts")
    rest = {name: value for name, value in arguments.items() if name != "prompt_of"}
    return {**rest, "longest": int(arguments["cu_seqlens"].diff().max())}


def _varlen(*, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool, rope: Rope,
            longest: int) -> Tensor:  # fmt: skip
    scale = query.shape[-1] ** -0.5
    why = back_ends.refusal("varlen", query.device, query.dtype, query.shape[-1], False)
    if why:
        raise NotImplementedError(why)
    q, k = _turned(query, key, rope)
    return back_ends.varlen_attention(q, k, value, cu_seqlens, causal, scale, longest)


def _flash_3(*, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool, rope: Rope,
             longest: int) -> Tensor:  # fmt: skip
    """Call FlashAttention 3 by its own interface: torch's switch to it holds for the whole process."""
    from flash_attn_interface import flash_attn_varlen_func

    q, k = _turned(query, key, rope)
    out = flash_attn_varlen_func(
        q, k, value, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens, max_seqlen_q=longest, max_seqlen_k=longest,
        softmax_scale=query.shape[-1] ** -0.5, causal=causal,
    )  # fmt: skip
    return out[0] if isinstance(out, tuple) else out  # older ones return the log-sum-exp as well


def _xformers(*, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool, rope: Rope,
              longest: int) -> Tensor:  # fmt: skip
    del longest
    q, k = _turned(query, key, rope)
    return back_ends.xformers_attention(q, k, value, cu_seqlens, causal, query.shape[-1] ** -0.5)


def _sdpa(*, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool, prompt_of: Tensor | None,
          rope: Rope) -> Tensor:  # fmt: skip
    return sdpa_attention(query, key, value, cu_seqlens, causal, query.shape[-1] ** -0.5, prompt_of, rope)


def flex_mask(cu_seqlens: Tensor, causal: bool, prompt_of: Tensor | None, num_tokens: int) -> Callable[..., Tensor]:
    """Return FlexAttention's mask function of a packing."""
    token = torch.arange(num_tokens, device=cu_seqlens.device)
    segment = torch.bucketize(token, cu_seqlens[1:].long(), right=True)
    prompt = segment.new_full((num_tokens,), -1) if prompt_of is None else prompt_of.long()[segment]

    def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        own = segment[row] == segment[column]
        return (own & (row >= column) if causal else own) | (prompt[row] == segment[column])

    return visible


_flex_attend, _block_mask = compiled(flex_attention), compiled(create_block_mask)  # else both hold all pairs at once


def _with_block_mask(arguments: Arguments) -> Arguments:
    query = arguments["query"]
    count = query.shape[0]
    mask = flex_mask(arguments["cu_seqlens"].to(query.device), arguments["causal"], arguments["prompt_of"], count)
    blocks = _block_mask(mask, None, None, count, count, device=query.device)
    return {name: arguments[name] for name in ("query", "key", "value", "rope")} | {"blocks": blocks}


def _flex_attention(*, query: Tensor, key: Tensor, value: Tensor, rope: Rope, blocks: Any) -> Tensor:
    q, k = _turned(query, key, rope)
    by_head = (x.transpose(0, 1)[None] for x in (q, k, value))
    return _flex_attend(*by_head, block_mask=blocks, enable_gqa=True)[0].transpose(0, 1)


PEERS = {
    "torch varlen, FA2": Peer(_varlen, cuda=True, prepare=_with_longest),
    "FA3, varlen": Peer(_flash_3, needs=("flash_attn_interface",), cuda=True, prepare=_with_longest),
    "FlexAttention": Peer(_flex_attention, cuda=True, prepare=_with_block_mask),
    "xformers": Peer(_xformers, needs=("xformers",), cuda=True, prepare=_with_longest),
    "SDPA, document by document": Peer(_sdpa),
}

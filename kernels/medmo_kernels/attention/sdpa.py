"""Packed attention through a few dense calls of `scaled_dot_product_attention`: the plain form, for the CPU.

Documents of equal length share one call; causal documents of nearly equal length are padded on the right, where the
causal mask already hides the padding from every real token. Branches that share a prompt lie directly behind it, so a
run of branches is one slice of queries against prompt and run, with a mask; the prompt's keys are never copied per
branch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_segments
from .reference import dense_attention_backward, visible_pairs
from .rotary import rotated
from .sdpa_plan import plan_of


def sdpa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    causal: bool,
    scale: float,
    prompt_of: Tensor | None,
    rope: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Attend as `attention` says; the boundaries are read on the host."""
    if rope is not None:
        query, key = rotated(query, rope), rotated(key, rope)
    prompts = None if prompt_of is None else tuple(prompt_of.tolist())
    plan = plan_of(tuple(cu_seqlens.tolist()), causal, query.device, prompts)
    pieces = []
    for group in plan.groups:
        q, k, v = (_rows(x, group.rows) for x in (query, key, value))
        out = _dense(q, k, v, group.num_documents, causal, scale, None)
        pieces.append(out if group.real is None else out.index_select(0, group.real))
    for run in plan.runs:
        k, v = (torch.cat([x[run.prompt], x[run.rows]]) for x in (key, value))
        pieces.append(_dense(query[run.rows], k, v, 1, False, scale, run.mask))
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return joined if plan.order is None else torch.zeros_like(query).index_copy(0, plan.order, joined)


def _rows(x: Tensor, rows: Tensor | slice) -> Tensor:
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


def _dense(
    query: Tensor, key: Tensor, value: Tensor, num_documents: int, causal: bool, scale: float, mask: Tensor | None
) -> Tensor:
    """Attend in `num_documents` documents of equal length, laid end to end."""
    q, k, v = (x.unflatten(0, (num_documents, -1)).transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(0, 1)


@torch.library.custom_op("medmo_kernels::attention_by_segments", mutates_args=())
def attention_by_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    prompt_of: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """Attend as `sdpa_attention`: one op for traces, which have no numbers to plan by.

    The backward pass forms the (T, T) weights of every head at once: inference is what it is for.
    """
    check_segments(query, cu_seqlens, causal, prompt_of)
    rope = None if cos is None or sin is None else (cos, sin)
    return sdpa_attention(query, key, value, cu_seqlens, causal, scale, prompt_of, rope).contiguous()


@attention_by_segments.register_fake
def _(query: Tensor, *rest: Any) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("medmo_kernels::attention_by_segments_backward", mutates_args=())
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    prompt_of: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    visible = visible_pairs(query, cu_seqlens, causal, prompt_of)
    return dense_attention_backward(grad, query, key, value, visible, scale, cos, sin)


@_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(grad, *ctx.saved_tensors, ctx.causal, ctx.scale), *(None,) * 6)


attention_by_segments.register_autograd(_differentiate, setup_context=_setup_context)

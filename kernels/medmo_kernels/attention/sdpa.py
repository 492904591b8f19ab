"""Packed attention through a few dense calls of `scaled_dot_product_attention`: the plain form, for the CPU.

Documents of equal length share one call; causal documents of nearly equal length are padded on the right, where the
causal mask already hides the padding from every real token. Branches that share a prompt lie directly behind it, so a
run of branches is one slice of queries against prompt and run, with a mask; the prompt's keys are never copied per
branch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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

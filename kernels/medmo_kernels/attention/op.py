"""Packed attention: checks, registration, and which back end serves which tensors.

On the CPU a few dense calls of `scaled_dot_product_attention` (sdpa.py). On CUDA the Triton kernels or a peer
(peers.py), as the shipped table says per head width, mask and rotation; what neither takes (float64, other head
widths) goes through the dense calls as well, which then read the boundaries on the host.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import back_ends, runtime
from ..back_ends import Choice
from ..transforms import as_autocast, has_values, refuse_table_gradients, refuse_transforms
from . import peers
from .checks import check_segments, check_tensors
from .reference import Packing, attention_reference, dense_attention, dense_attention_backward, visible_pairs
from .rotary import rotated
from .sdpa import attention_by_segments, sdpa_attention

OP = "attention"
HEAD_DIMS = (64, 72, 80, 128)
"""Head widths that have kernels."""


def _refusal(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, prefix: bool) -> str:
    """Say why a back end cannot serve such tensors, or return an empty text."""
    if backend in ("sdpa", "reference"):
        return ""
    if backend != "triton":
        return peers.refusal(backend, device, dtype, head_dim, prefix)
    if head_dim not in HEAD_DIMS:
        return f"it has kernels for head widths {', '.join(map(str, HEAD_DIMS))}, not {head_dim}"
    if dtype not in runtime.KERNEL_DTYPES:
        return f"it has no kernels for {dtype}"
    return runtime.triton_refusal(device, dtype)


BACK_ENDS = back_ends.declare(
    "attention", OP, ("triton", "varlen", "xformers", "sdpa"), plain="sdpa", peers=("varlen",), refusal=_refusal
)
"""Names that the table may use."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    causal: bool,
    scale: float | None = None,
    *,
    prompt_of: Tensor | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """Attend within each packed segment, and to the prompt that segments share.

    With `prompt_of` a prompt and its k branches stand in the batch as prompt, branch, ..., branch, each one
    segment: a branch sees its whole prompt and itself causally, so that k answers cost one prompt.

    Shapes: T tokens, H query heads, K key/value heads (H a multiple of K), D head width, s segments. Segments may be
        empty. Inputs may be views; only their last axis must be contiguous.
    Numerics: scores and sums in fp32 (float64 for float64), one cast at the end. The Triton backward recomputes the
        weights from the saved log-sum-exp and adds in a fixed order: runs are equal bit for bit.

    Args:
        query: (T, H, D).
        key: (T, K, D); query head h reads key/value head h // (H // K).
        value: (T, K, D).
        cu_seqlens: (s + 1,) int32 boundaries of the segments: 0, ..., T; on the CPU or on the device of `query`. On
            CUDA the numbers are not checked, because it would make the host wait; the kernels read no token outside T.
            A call that is traced (torch.compile, torch.export) on the CPU becomes one op that reads them when it runs.
        causal: whether a token sees only itself and the tokens of its segment before it.
        scale: positive factor on the scores; default D ** -0.5.
        prompt_of: (s,) int32 or int64, on the device of `cu_seqlens`: the segment that segment j sees whole besides its
            own tokens; -1: none. Needs `causal`. Branches follow their prompt directly; a prompt has no prompt itself.
            On CUDA this is not checked either; the number of no segment counts as -1 in the kernels.
        rope: (cos, sin), each (T, D / 2) fp32 without gradient: the pairs (x[i], x[i + D / 2]) of queries and keys are
            turned by them first. Gradients are those of the tensors before.
        max_seqlen: length of the longest segment or more, where known: it spares a peer empty blocks.

    Returns:
        (T, H, D) in the dtype of `query`; under autocast in that of `F.linear`.

    Raises:
        RuntimeError: a CUDA graph is captured, and boundaries on the host would have to be copied; or gradients are
            recorded and `rope` requires one.
        ValueError: shapes, dtypes or devices do not fit, the scale is not positive, the boundaries do not rise from 0
            to T, or `prompt_of` breaks its rules.

    Reference: Dao 2023, arXiv 2307.08691; Su et al. 2021, arXiv 2104.09864.
    """
    query, key, value = as_autocast(query), as_autocast(key), as_autocast(value)
    check_tensors(query, key, value, rope)
    refuse_table_gradients("attention", *(rope or ()))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if factor <= 0:
        raise ValueError(f"attention: scale {factor} must be positive")
    check_segments(query, cu_seqlens, causal, prompt_of)
    head_dim, prefix = query.shape[-1], prompt_of is not None
    shape = shape_class(head_dim, causal, prefix, rope is not None)
    choice = back_ends.choose(OP, shape, query.device, query.dtype, head_dim, prefix)
    if choice.backend == "reference":
        return attention_reference(query, key, value, cu_seqlens, causal, factor, prompt_of=prompt_of, rope=rope)
    if choice.backend == "sdpa":
        if query.device.type == "cuda":
            _warn_slow(choice)
        if not has_values(cu_seqlens):
            cos, sin = rope if rope is not None else (None, None)
            return attention_by_segments(query, key, value, cu_seqlens, prompt_of, cos, sin, causal, factor)
        return sdpa_attention(query, key, value, cu_seqlens, causal, factor, prompt_of, rope)
    refuse_transforms("attention", query, key, value, *(rope or ()))
    bounds = _on_device(cu_seqlens, query.device)
    if choice.backend == "triton":
        cos, sin = rope if rope is not None else (None, None)
        prompts = None if prompt_of is None else _on_device(prompt_of, query.device)
        return _attention(query, key, value, bounds, prompts, cos, sin, causal, factor)[0]
    if rope is not None:
        query, key = rotated(query, rope), rotated(key, rope)
    if choice.backend == "varlen":
        return peers.varlen_attention(query, key, value, bounds, causal, factor, max_seqlen)
    return peers.xformers_attention(query, key, value, cu_seqlens, causal, factor)


def _on_device(numbers: Tensor, device: torch.device) -> Tensor:
    copied = device.type == "cuda" and numbers.device != device and not torch.compiler.is_compiling()
    if copied and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"attention: cu_seqlens and prompt_of must be on {device} before a CUDA graph is captured: a copy from "
            f"{numbers.device} cannot be part of it"
        )
    return numbers.to(device, torch.int32, non_blocking=True).contiguous()


def choices(device: torch.device) -> dict[str, Choice]:
    """Say which back end serves which class of tensors on this device."""
    found = {}
    classes = ((False, False, False), (False, False, True), (True, False, False), (True, True, False))
    for causal, prefix, rotary in classes:
        for head_dim in HEAD_DIMS:
            name = shape_class(head_dim, causal, prefix, rotary)
            found[name] = back_ends.explain(OP, name, device, torch.bfloat16, head_dim, prefix)
    for name, dtype, head_dim in (("head_dim 96", torch.bfloat16, 96), ("float64", torch.float64, 64)):
        found[f"causal, {name}"] = back_ends.explain(OP, f"causal, {name}", device, dtype, head_dim, False)
    return found


def shape_class(head_dim: int, causal: bool, prefix: bool, rotary: bool) -> str:
    """Return the name that the table has for a class of shapes."""
    mask = "shared prompts" if prefix else "causal" if causal else "bidirectional"
    return f"{mask}, head_dim {head_dim}{', rotary' * rotary}"


@lru_cache(maxsize=32)
def _warn_slow(choice: Choice) -> None:
    """Warn once that tensors on a GPU go through dense calls."""
    reasons = "; ".join(f"{backend}: {why}" for backend, why in choice.refused)
    warnings.warn(f"attention runs document by document and makes the host wait: {reasons}", RuntimeWarning, 3)


@torch.library.custom_op("medmo_kernels::attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    prompt_of: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return (T, H, D) and the (H, T) log-sum-exp: the kernels, or where they do not run the definition."""
    packing = Packing(cu_seqlens, prompt_of, cos, sin, causal, scale)
    if _runs_triton(query, packing):
        from .launch import attention_forward

        return attention_forward(query, key, value, packing)
    visible = visible_pairs(query, cu_seqlens, causal, prompt_of)
    return dense_attention(query, key, value, visible, scale, cos, sin)


def _runs_triton(query: Tensor, packing: Packing) -> bool:
    """Say whether the kernels can serve a call; that they should, `attention` has decided."""
    details = query.shape[-1], packing.prompt_of is not None
    return back_ends.choose(OP, None, query.device, query.dtype, *details).backend == "triton"


@_attention.register_fake
def _(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(query.shape), query.new_empty((query.shape[1], query.shape[0]), dtype=lse_dtype)


@torch.library.custom_op("medmo_kernels::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    prompt_of: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    packing = Packing(cu_seqlens, prompt_of, cos, sin, causal, scale)
    if _runs_triton(query, packing):
        from .launch import attention_backward

        return attention_backward(grad, query, key, value, out, lse, packing)
    visible = visible_pairs(query, cu_seqlens, causal, prompt_of)
    return dense_attention_backward(grad, query, key, value, visible, scale, cos, sin)


@_attention_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.causal, ctx.scale = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 6
    if grad is None:
        return (None, None, None, *nothing)
    query, key, value, *packing, out, lse = ctx.saved_tensors
    grads = _attention_backward(grad, query, key, value, out, lse, *packing, ctx.causal, ctx.scale)
    return (*grads, *nothing)


_attention.register_autograd(_differentiate, setup_context=_setup_context)

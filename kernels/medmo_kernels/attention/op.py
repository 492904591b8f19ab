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

from .. import runtime
from . import peers
from .reference import attention_reference, dense_attention, dense_attention_backward, visible_pairs
from .sdpa import rotated, sdpa_attention

ROOM = "attention"
BACK_ENDS = ("triton", "varlen", "xformers", "sdpa")
"""What the table may name."""
HEAD_DIMS = (64, 72, 80, 128)
"""Head widths that have kernels."""


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

    With `prompt_of` a prompt and its k branches stand in the batch as prompt, branch, ..., branch, each a segment of
    its own: a branch sees its whole prompt and itself causally, so that k answers cost one prompt.

    Shapes: T tokens, H query heads, K key/value heads (H a multiple of K), D head width, s segments. Segments may be
        empty. Inputs may be views; only their last axis must be contiguous.
    Numerics: scores and sums in fp32 (float64 for float64), one cast at the end. The Triton backward recomputes the
        weights from the saved log-sum-exp and adds in a fixed order: runs are equal bit for bit.

    Args:
        query: (T, H, D).
        key: (T, K, D); query head h reads key/value head h // (H // K).
        value: (T, K, D).
        cu_seqlens: (s + 1,) int32 boundaries of the segments: 0, ..., T; on the CPU or on the device of `query`.
        causal: a token sees itself and the tokens of its segment before it.
        scale: positive factor on the scores; default D ** -0.5.
        prompt_of: (s,) int32 or int64, on the device of `cu_seqlens`: the segment that segment j sees whole besides its
            own tokens; -1: none. Needs `causal`. Branches follow their prompt directly; a prompt has no prompt itself.
            On CUDA this is not checked, because it would make the host wait.
        rope: (cos, sin), each (T, D / 2) fp32 without gradient: the pairs (x[i], x[i + D / 2]) of queries and keys are
            turned by them first. Gradients are those of the tensors before.
        max_seqlen: length of the longest segment or more, where known: it spares a peer empty blocks.

    Returns:
        (T, H, D) in the dtype of `query`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, the scale is not positive, the boundaries do not end at T, or
            `prompt_of` breaks its rules.

    Reference: Dao 2023, arXiv 2307.08691; Su et al. 2021, arXiv 2104.09864.
    """
    _check_tensors(query, key, value, rope)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if factor <= 0:
        raise ValueError(f"attention: scale {factor} must be positive")
    _check_segments(query, cu_seqlens, causal, prompt_of)
    choice = _choice(
        runtime.mode(), runtime.forced_backend(ROOM), query.device, query.dtype, query.shape[-1], causal,
        prompt_of is not None, rope is not None,
    )  # fmt: skip
    if choice.backend == "reference":
        return attention_reference(query, key, value, cu_seqlens, causal, factor, prompt_of=prompt_of, rope=rope)
    if choice.backend == "sdpa":
        if query.device.type == "cuda":
            _warn_slow(choice)
        return sdpa_attention(query, key, value, cu_seqlens, causal, factor, prompt_of, rope)
    bounds = cu_seqlens.to(query.device, torch.int32, non_blocking=True)
    if choice.backend == "triton":
        cos, sin = rope if rope is not None else (None, None)
        prompts = None if prompt_of is None else prompt_of.to(query.device, torch.int32, non_blocking=True)
        return _attention(query, key, value, bounds, prompts, cos, sin, causal, factor)[0]
    if rope is not None:
        query, key = rotated(query, rope), rotated(key, rope)
    if choice.backend == "varlen":
        return peers.varlen_attention(query, key, value, bounds, causal, factor, max_seqlen)
    return peers.xformers_attention(query, key, value, cu_seqlens, causal, factor)


def choices(device: torch.device) -> dict[str, runtime.Choice]:
    """Say which back end serves which class of tensors on this device."""
    state = runtime.mode(), runtime.forced_backend(ROOM), device
    found = {}
    classes = ((False, False, False), (False, False, True), (True, False, False), (True, True, False))
    for causal, prefix, rotary in classes:
        for head_dim in HEAD_DIMS:
            name = shape_class(head_dim, causal, prefix, rotary)
            found[name] = _choice(*state, torch.bfloat16, head_dim, causal, prefix, rotary)
    found["causal, head_dim 96"] = _choice(*state, torch.bfloat16, 96, True, False, False)
    found["causal, float64"] = _choice(*state, torch.float64, 64, True, False, False)
    return found


def shape_class(head_dim: int, causal: bool, prefix: bool, rotary: bool) -> str:
    """Return the name that the table has for a class of shapes."""
    mask = "shared prompts" if prefix else "causal" if causal else "bidirectional"
    return f"{mask}, head_dim {head_dim}{', rotary' * rotary}"


@lru_cache(maxsize=256)
@torch.compiler.assume_constant_result  # torch.compile cannot trace the reading of a file
def _choice(
    mode: str,
    forced: str | None,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    causal: bool,
    prefix: bool,
    rotary: bool,
) -> runtime.Choice:
    """Choose the back end of one class of tensors: the table's, else the first that can run."""
    if forced is not None:
        on_host = forced == "triton" and mode == "auto" and device.type != "cuda"
        if why := "no CUDA device" if on_host else _refusal(forced, device, dtype, head_dim, prefix):
            raise NotImplementedError(f"attention by {forced}: {why}")
        return runtime.Choice(forced, "nothing else may serve it now")
    if mode == "reference":
        return runtime.Choice("reference", f"{runtime.SWITCH}=reference")
    if mode == "auto" and device.type != "cuda":
        return runtime.Choice("sdpa", f"on the {device.type.upper()}", (("triton", "no CUDA device"),))
    wanted, reason = "triton", "it has kernels for these tensors"
    if mode == "auto" and head_dim in HEAD_DIMS:
        shape = shape_class(head_dim, causal, prefix, rotary)
        row = runtime.table_row(ROOM, runtime.capability(device), op=ROOM, shape=shape)
        wanted, reason = row["backend"], runtime.named(row)
    refused = [] if wanted == "triton" else [("triton", f"the table names {wanted}")]
    for backend in dict.fromkeys((wanted, "triton", "varlen")):
        why = _refusal(backend, device, dtype, head_dim, prefix)
        if not why:
            instead = reason if backend == wanted else "the first that can run"
            return runtime.Choice(backend, instead, tuple(pair for pair in refused if pair[0] != backend))
        refused.append((backend, why))
    return runtime.Choice("sdpa", "nothing faster can run", tuple(refused))


def _refusal(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, prefix: bool) -> str:
    """Say why a back end cannot serve such tensors, or return an empty text."""
    if backend == "sdpa":
        return ""
    if backend != "triton":
        return peers.refusal(backend, device, dtype, head_dim, prefix)
    if head_dim not in HEAD_DIMS:
        return f"it has kernels for head widths {', '.join(map(str, HEAD_DIMS))}, not {head_dim}"
    if dtype not in runtime.KERNEL_DTYPES:
        return f"it has no kernels for {dtype}"
    return runtime.triton_refusal(device, dtype)


@lru_cache(maxsize=32)
def _warn_slow(choice: runtime.Choice) -> None:
    """Tell once that tensors on a GPU go through dense calls."""
    reasons = "; ".join(f"{backend}: {why}" for backend, why in choice.refused)
    warnings.warn(f"attention runs document by document and makes the host wait: {reasons}", RuntimeWarning, 3)


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_tensors(query: Tensor, key: Tensor, value: Tensor, rope: tuple[Tensor, Tensor] | None) -> None:
    if query.ndim != 3 or key.shape != value.shape or key.shape != (query.shape[0], key.shape[1], query.shape[2]):
        shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        raise ValueError(f"attention: {shapes}; expected (T, H, D), (T, K, D), (T, K, D)")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads are not a multiple of {key.shape[1]} key/value heads")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"attention: query is {query.dtype}, key {key.dtype}, value {value.dtype}; expected one dtype")
    if rope is not None:
        expected = (query.shape[0], query.shape[2] // 2)
        if query.shape[2] % 2 or rope[0].shape != expected or rope[1].shape != expected:
            shapes = f"{tuple(rope[0].shape)} and {tuple(rope[1].shape)}"
            raise ValueError(f"attention: rope {shapes} beside query {tuple(query.shape)}; expected (T, D / 2) twice")


def _check_segments(query: Tensor, cu_seqlens: Tensor, causal: bool, prompt_of: Tensor | None) -> None:
    """Check the packing as far as that needs no word from a GPU."""
    if cu_seqlens.device.type == "cpu" and int(cu_seqlens[-1]) != query.shape[0]:
        raise ValueError(f"cu_seqlens ends at {int(cu_seqlens[-1])}, the batch has {query.shape[0]} tokens")
    if prompt_of is None:
        return
    if not causal:
        raise ValueError("attention: prompt_of needs causal=True")
    if prompt_of.shape != cu_seqlens[1:].shape:
        shapes = f"prompt_of {tuple(prompt_of.shape)}, cu_seqlens {tuple(cu_seqlens.shape)}"
        raise ValueError(f"attention: {shapes}; expected (s,) and (s + 1,)")
    if prompt_of.device.type == "cpu":
        check_prompts(tuple(prompt_of.tolist()))


@lru_cache(maxsize=64)
def check_prompts(prompts: tuple[int, ...]) -> None:
    """Refuse segments that cannot share prompts as told: see `prompt_of` of `attention`."""
    for segment, prompt in enumerate(prompts):
        if prompt < 0:
            continue
        if prompt >= segment or prompts[segment - 1] != prompt and segment - 1 != prompt:
            raise ValueError(f"prompt_of[{segment}] is {prompt}: branches must follow their prompt directly")
        if prompts[prompt] >= 0:
            raise ValueError(f"prompt_of[{segment}] is {prompt}, which has a prompt itself: only one level is possible")


# --- registration ----------------------------------------------------------------------------------------------------


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
    if runtime.uses_triton(query):
        from .launch import attention_forward

        return attention_forward(query, key, value, cu_seqlens, prompt_of, cos, sin, causal, scale)
    visible = visible_pairs(query, cu_seqlens, causal, prompt_of)
    return dense_attention(query, key, value, visible, scale, cos, sin)


@_attention.register_fake
def _(
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
    if runtime.uses_triton(query):
        from .launch import attention_backward

        return attention_backward(grad, query, key, value, out, lse, cu_seqlens, prompt_of, cos, sin, causal, scale)
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

"""Registration of qk_norm_rope. CUDA runs the Triton kernels, the CPU a closed form in few passes of torch's ops."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import back_ends
from ..back_ends import Choice
from ..transforms import refuse_table_gradients, refuse_transforms
from .checks import check_call, check_places
from .plain import keep_tokens, norm_rope, norm_rope_backward
from .reference import Call, Places

OP, IN_PLACE, INTO_CACHE = "qk_norm_rope", "qk_norm_rope_", "qk_norm_rope_cache_"
BACK_ENDS = ("triton", "torch")
"""Names that the table may use."""
for _op in (OP, IN_PLACE, INTO_CACHE):
    back_ends.declare("qk_norm_rope", _op, BACK_ENDS, plain="torch")
FEW_TOKENS = 64
"""Decoding has at most so many: there a launch costs more than the bytes."""
FEW, MANY = f"at most {FEW_TOKENS} tokens", f"more than {FEW_TOKENS} tokens"


def qk_norm_rope(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Normalise every head by its root mean square, scale it, and rotate it by its token's angles.

    Shapes: T tokens, H query heads, K key heads, D head width (even, at most 256).
    Numerics: fp32 throughout (float64 for float64) and one cast at the end. The published code casts to the model's
        dtype after the norm, after the weight and after each product of the rotation, with tables in that dtype; in 16
        bits the two differ by a rounding or two, and this one is the nearer to the exact result. Weight gradients are
        summed in fp32 in a fixed order.

    Args:
        query: (T, H, D); a view of a fused projection will do.
        key: (T, K, D), in the dtype of `query`.
        query_weight: (D,).
        key_weight: (D,).
        cos: (T, D / 2) fp32; the two halves of a head turn by the same angles. M-RoPE sections and their interleaving
            are in the table already. Receives no gradient.
        sin: (T, D / 2) fp32, likewise.
        eps: number added to the mean of squares.

    Returns:
        (T, H, D) and (T, K, D) in the dtype of `query`, contiguous.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or D is odd or above 256.
        RuntimeError: gradients are recorded and a table requires one.

    Reference: Qwen3-VL's text attention (q_norm, k_norm, interleaved M-RoPE), arXiv 2511.21631.
    """
    check_call(query, key, query_weight, key_weight, cos, sin)
    refuse_table_gradients(OP, cos, sin)
    refuse_transforms("qk_norm_rope", query, key, query_weight, key_weight, cos, sin)
    return _qk_norm_rope(query, key, query_weight, key_weight, cos, sin, eps)


def qk_norm_rope_(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Do what `qk_norm_rope` does in the memory of `query` and `key`, where nobody needs a gradient.

    Args:
        query, key, query_weight, key_weight, cos, sin, eps: arguments of `qk_norm_rope`; the first two are
            overwritten, share no element, and their last axis has stride 1.

    Returns:
        `query` and `key` themselves.

    Raises:
        ValueError: as `qk_norm_rope`, or a last axis has another stride.
        RuntimeError: gradients are recorded and an input requires one.
    """
    check_call(query, key, query_weight, key_weight, cos, sin)
    _refuse_gradients(IN_PLACE, query, key, query_weight, key_weight, cos, sin)
    if not query.stride(2) == key.stride(2) == 1:
        raise ValueError(f"qk_norm_rope_: strides {query.stride()} and {key.stride()}, the last must be 1")
    refuse_transforms(IN_PLACE, query, key, query_weight, key_weight, cos, sin)
    _qk_norm_rope_(query, key, query_weight, key_weight, cos, sin, eps)
    _mark_written(query, key)
    return query, key


def qk_norm_rope_cache_(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    columns: Tensor,
    *,
    eps: float = 1e-6,
) -> Tensor:
    """Do what `qk_norm_rope` does to one token of each row: the query in place, the key on its way into a cache.

    One launch for what decoding does in a layer before `decode_attention`. No shape, grid or buffer depends on the
    columns and no host reads them on CUDA, so a CUDA graph that holds the call serves every token.

    Shapes: T rows of one token, H query heads, K key heads, D head width, S columns of the caches.

    Args:
        query, key, query_weight, key_weight, cos, sin, eps: arguments of `qk_norm_rope`; `query` is overwritten, its
            last axis has stride 1, and `key` is left as it is.
        value: (T, K, D) in the dtype of `query`; goes into its cache unchanged.
        key_cache: (T, K, S, D) in the dtype of `query`, of which one column of each row is written; the last axis has
            stride 1.
        value_cache: (T, K, S, D) likewise.
        columns: (T,) int32 column that each row's token goes into. A row whose column is not in 0 to S - 1 leaves the
            caches as they are.

    Returns:
        `query` itself.

    Raises:
        ValueError: as `qk_norm_rope_`, or values, caches or columns do not fit.
        RuntimeError: gradients are recorded and an input requires one.
    """
    check_call(query, key, query_weight, key_weight, cos, sin)
    check_places(query, key, Places(value, key_cache, value_cache, columns))
    _refuse_gradients(INTO_CACHE, query, key, query_weight, key_weight, cos, sin, value, key_cache, value_cache)
    refuse_transforms(INTO_CACHE, query, key, value, query_weight, key_weight, cos, sin, key_cache, value_cache)
    arguments = (query, key, query_weight, key_weight, cos, sin, eps, value, key_cache, value_cache, columns)
    # On the CPU the dispatcher would only add its own time, where nothing traces the call.
    direct = query.device.type == "cpu" and type(query) is Tensor and not torch.compiler.is_compiling()
    (_into_cache if direct else _qk_norm_rope_cache_)(*arguments)
    _mark_written(query, key_cache, value_cache)
    return query


def choices(device: torch.device) -> Mapping[str, Choice]:
    """Say what serves the op on a device."""
    return back_ends.choices(OP, device, torch.bfloat16)


def choices_in_place(device: torch.device) -> Mapping[str, Choice]:
    """Say what serves the form in place on a device."""
    return back_ends.choices(IN_PLACE, device, torch.bfloat16)


def choices_into_cache(device: torch.device) -> Mapping[str, Choice]:
    """Say what serves the form for a cache on a device."""
    return back_ends.choices(INTO_CACHE, device, torch.bfloat16)


def shape_class(query: Tensor) -> str:
    """Return the name that the table has for a class of shapes."""
    return FEW if query.shape[0] <= FEW_TOKENS else MANY


def _refuse_gradients(op: str, *tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise RuntimeError(f"{op} keeps nothing for a backward pass: use qk_norm_rope, or torch.no_grad()")


def _mark_written(*tensors: Tensor) -> None:
    """Let a graph that has kept tensors notice that they were written; the compiler sees to that itself."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([x for x in tensors if not x.is_inference()])


def _runs_triton(op: str, query: Tensor) -> bool:
    return back_ends.choose(op, shape_class(query), query.device, query.dtype).backend == "triton"


@torch.library.custom_op("medmo_kernels::qk_norm_rope", mutates_args=())
def _qk_norm_rope(
    query: Tensor, key: Tensor, query_weight: Tensor, key_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    if not _runs_triton(OP, query):
        return norm_rope(query, query_weight, cos, sin, eps), norm_rope(key, key_weight, cos, sin, eps)
    from .launch import forward

    query_out, key_out = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key))
    forward(Call(query, key, query_weight, key_weight, cos, sin, eps), query_out, key_out)
    return query_out, key_out


@_qk_norm_rope.register_fake
def _(query: Tensor, key: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    query_out, key_out = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key))
    return query_out, key_out


# Decoding calls this once a layer and token: a plain registration costs less Python than `custom_op` with mutation.
_library = torch.library.Library("medmo_kernels", "FRAGMENT")
_library.define(
    "qk_norm_rope_(Tensor(a!) query, Tensor(b!) key, Tensor query_weight, Tensor key_weight, Tensor cos, Tensor sin, "
    "float eps) -> ()"
)


def _in_place(*arguments: Any) -> None:
    call = Call(*arguments)
    query, key, query_weight, key_weight, cos, sin, eps = call
    if _runs_triton(IN_PLACE, query):
        from .launch import forward

        forward(call, query, key)
        return
    query.copy_(norm_rope(query, query_weight, cos, sin, eps))
    key.copy_(norm_rope(key, key_weight, cos, sin, eps))


_library.impl("qk_norm_rope_", _in_place, "CompositeExplicitAutograd")
_qk_norm_rope_ = torch.ops.medmo_kernels.qk_norm_rope_.default

_library.define(
    "qk_norm_rope_cache_(Tensor(a!) query, Tensor key, Tensor query_weight, Tensor key_weight, Tensor cos, Tensor sin, "
    "float eps, Tensor value, Tensor(b!) key_cache, Tensor(c!) value_cache, Tensor columns) -> ()"
)


def _into_cache(*arguments: Any) -> None:
    call, places = Call(*arguments[:7]), Places(*arguments[7:])
    query, key, query_weight, key_weight, cos, sin, eps = call
    if _runs_triton(INTO_CACHE, query):
        from .launch import into_cache

        into_cache(call, places)
        return
    query.copy_(norm_rope(query, query_weight, cos, sin, eps))
    keep_tokens(places.key_cache, norm_rope(key, key_weight, cos, sin, eps), places.columns)
    keep_tokens(places.value_cache, places.value, places.columns)


_library.impl("qk_norm_rope_cache_", _into_cache, "CompositeExplicitAutograd")
_qk_norm_rope_cache_ = torch.ops.medmo_kernels.qk_norm_rope_cache_.default


@torch.library.register_fake("medmo_kernels::qk_norm_rope_", lib=_library)
@torch.library.register_fake("medmo_kernels::qk_norm_rope_cache_", lib=_library)
def _(query: Tensor, *rest: Any) -> None:
    return None


@torch.library.custom_op("medmo_kernels::qk_norm_rope_backward", mutates_args=())
def _qk_norm_rope_backward(
    query_grad: Tensor,
    key_grad: Tensor,
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and both weights; without `weights` the last two are empty."""
    if _runs_triton(OP, query):
        from .launch import backward

        call = Call(query, key, query_weight, key_weight, cos, sin, eps)
        dq, dk, dwq, dwk = backward(query_grad, key_grad, call, weights)
    else:
        dq, dwq = norm_rope_backward(query_grad, query, query_weight, cos, sin, eps, weights)
        dk, dwk = norm_rope_backward(key_grad, key, key_weight, cos, sin, eps, weights)
    return dq, dk, dwq.to(query_weight.dtype), dwk.to(key_weight.dtype)


@_qk_norm_rope_backward.register_fake
def _(query_grad: Tensor, key_grad: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *inputs, _, _, _, weights = rest
    query, key, query_weight, key_weight = inputs
    dq, dk = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key))
    dwq, dwk = (w.new_empty(w.shape if weights else 0) for w in (query_weight, key_weight))
    return dq, dk, dwq, dwk


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.eps = inputs[6]


def _backward(ctx: Any, query_grad: Tensor, key_grad: Tensor) -> tuple[Tensor | None, ...]:
    weights = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]  # frozen weights: no sums
    dq, dk, dwq, dwk = _qk_norm_rope_backward(query_grad, key_grad, *ctx.saved_tensors, ctx.eps, weights)
    return dq, dk, dwq if weights else None, dwk if weights else None, None, None, None


_qk_norm_rope.register_autograd(_backward, setup_context=_save)

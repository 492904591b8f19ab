"""Registration of projector. CUDA: Triton or plain layers, as the table says; CPU: plain layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import back_ends, runtime
from ..back_ends import Choice
from ..transforms import is_autocast, is_plain, refuse_transforms
from .reference import ProjectorWeights, projector_reference

OP = "projector"
MAX_WIDTH = 4096
"""Widest patch whose token the kernels of the norm hold in registers."""
FEW_TOKENS = 256
"""Up to so many tokens a product waits for weights and launches rather than for multipliers."""


def _refusal(backend: str, device: torch.device, dtype: torch.dtype, unfit: str) -> str:
    return (runtime.triton_refusal(device, dtype) or unfit) if backend == "triton" else ""


BACK_ENDS = back_ends.declare("projector", OP, ("triton", "eager"), plain="eager", refusal=_refusal)
"""Names that the table may use."""

_Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def projector(
    features: Sequence[Tensor], weights: Sequence[ProjectorWeights], *, merge_size: int = 2, eps: float = 1e-6
) -> list[Tensor]:
    """Turn patches into decoder tokens, once per merger: norm, merge, linear, erf-GELU, linear.

    The mergers of one tower (its main one and those of its deepstack taps) belong in one call: on a GPU their first
    products run in one launch.

    Shapes: G mergers, N patches in merge order, C their width, M = N / merge_size ** 2 tokens, O the decoder's width.
    Numerics: the Triton form accumulates in fp32 and rounds the normalised vectors and the activation to the input's
        dtype between the products, as the unfused form does; float64 throughout for float64. No atomics: equal inputs
        give equal bits.

    Args:
        features: G times (N, C), of one shape; the `merge_size ** 2` patches of a token follow one another.
        weights: parameters of each merger, in the dtype of the features; the width of `norm_weight` says whether to
            normalise each patch (C: main path) or the merged vector (merge_size ** 2 * C: deepstack).
        merge_size: patches along one side of a token.
        eps: number added to the variance.

    Returns:
        G times (M, O) in the dtype of the features.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check(features, weights, merge_size)
    backend = _backend(features, weights, merge_size)
    if backend == "reference":
        return projector_reference(features, weights, merge_size=merge_size, eps=eps)
    if backend == "eager":
        return [_eager(x, w, merge_size, eps) for x, w in zip(features, weights, strict=True)]
    refuse_transforms("projector", *features, *chain(*weights))
    lists = [list(features), *(list(column) for column in zip(*weights, strict=True))]
    keep = torch.is_grad_enabled() and any(t.requires_grad for tensors in lists for t in tensors)
    return _projector(*lists, merge_size, eps, keep)[0]


def choices(device: torch.device) -> dict[str, Choice]:
    """Return what serves 16-bit tensors on a device, by the number of tokens and of mergers."""
    by_count = back_ends.choices(OP, device, torch.bfloat16, "")
    return by_count | {"fp32": back_ends.explain(OP, "fp32", device, torch.float32, "")}


def shape_class(dtype: torch.dtype, num_tokens: int, num_mergers: int) -> str:
    """Return the name that the table has for a class of shapes."""
    if dtype == torch.float32:
        return "fp32"
    mergers = "one merger" if num_mergers == 1 else "a tower's mergers"
    return f"{mergers} of {'at most' if num_tokens <= FEW_TOKENS else 'more than'} {FEW_TOKENS} tokens"


def _backend(features: Sequence[Tensor], weights: Sequence[ProjectorWeights], merge_size: int) -> str:
    x = features[0]
    shape = shape_class(x.dtype, x.shape[0] // merge_size**2, len(features))
    return back_ends.choose(OP, shape, x.device, x.dtype, _unfit(features, weights, merge_size)).backend


def _unfit(features: Sequence[Tensor], weights: Sequence[ProjectorWeights], merge_size: int) -> str:
    """Say why the kernels cannot take such tensors, or return an empty text."""
    x, cells = features[0], merge_size**2
    if is_autocast(x.device):
        return "autocast knows only torch's own layers"
    if not all(is_plain(t) for t in (*features, *chain(*weights))):
        return "kernels take plain tensors, not sharded or quantised ones"
    if x.shape[1] % 16 or x.shape[1] > MAX_WIDTH:
        return f"patches of width {x.shape[1]}: the kernels take multiples of 16 up to {MAX_WIDTH}"
    if cells & (cells - 1):
        return f"merge_size {merge_size}: the kernels take powers of two"
    return ""


def _check(features: Sequence[Tensor], weights: Sequence[ProjectorWeights], merge_size: int) -> None:
    if not features or len(features) != len(weights):
        raise ValueError(f"projector: {len(features)} features and {len(weights)} weights: expected as many, not 0")
    x = features[0]
    if any(f.ndim != 2 or f.shape != x.shape for f in features):
        shapes = ", ".join(str(tuple(f.shape)) for f in features)
        raise ValueError(f"projector: features {shapes}: expected one shape (N, C)")
    num_patches, width = x.shape
    if num_patches % merge_size**2:
        raise ValueError(f"projector: {num_patches} patches do not make whole tokens of {merge_size**2}")
    for w in weights:
        merged, hidden, out = width * merge_size**2, w.fc1_weight.shape[0], w.fc2_weight.shape[0]
        norm = w.norm_weight.shape
        expected = ProjectorWeights(norm, norm, (hidden, merged), (hidden,), (out, hidden), (out,))  # pyright: ignore
        if norm not in ((width,), (merged,)):
            given = f"features {tuple(x.shape)}, norm_weight {tuple(norm)}"
            raise ValueError(f"projector: {given}: expected ({width},) or ({merged},)")
        for name, tensor, shape in zip(w._fields, w, expected, strict=True):
            if tensor.shape != shape:
                given = f"features {tuple(x.shape)}, {name} {tuple(tensor.shape)}"
                raise ValueError(f"projector: {given}: expected {tuple(shape)}")
        if w.fc1_weight.shape != weights[0].fc1_weight.shape or w.fc2_weight.shape != weights[0].fc2_weight.shape:
            shapes = ", ".join(f"{tuple(v.fc1_weight.shape)} and {tuple(v.fc2_weight.shape)}" for v in weights)
            raise ValueError(f"projector: fc1_weight and fc2_weight {shapes}: expected the same in all mergers")
    strangers = {str(t.dtype) for t in (*features, *chain(*weights)) if t.dtype != x.dtype}
    if strangers and not is_autocast(x.device):
        raise ValueError(f"projector: features are {x.dtype}, other tensors {', '.join(sorted(strangers))}")


def _eager(features: Tensor, w: ProjectorWeights, merge_size: int, eps: float) -> Tensor:
    norm_width = w.norm_weight.shape[0]
    normal = F.layer_norm(features.reshape(-1, norm_width), (norm_width,), w.norm_weight, w.norm_bias, eps)
    merged = normal.view(-1, features.shape[1] * merge_size**2)
    return F.linear(F.gelu(F.linear(merged, w.fc1_weight, w.fc1_bias)), w.fc2_weight, w.fc2_bias)


@torch.library.custom_op("medmo_kernels::projector", mutates_args=())
def _projector(
    features: list[Tensor],
    norm_weight: list[Tensor],
    norm_bias: list[Tensor],
    fc1_weight: list[Tensor],
    fc1_bias: list[Tensor],
    fc2_weight: list[Tensor],
    fc2_bias: list[Tensor],
    merge_size: int,
    eps: float,
    keep: bool,
) -> tuple[list[Tensor], Tensor]:
    from .launch import forward

    weights = _rows(norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    few = features[0].shape[0] // merge_size**2 <= FEW_TOKENS
    return forward(features, weights, merge_size, eps, keep, few)


@_projector.register_fake
def _(features: list[Tensor], *rest: Any) -> tuple[list[Tensor], Tensor]:
    *columns, merge_size, _, keep = rest
    fc1_weight, fc2_weight = columns[2], columns[4]
    num_tokens = features[0].shape[0] // merge_size**2
    out = [x.new_empty(num_tokens, w.shape[0]) for x, w in zip(features, fc2_weight, strict=True)]
    hidden = (len(features), num_tokens, fc1_weight[0].shape[0]) if keep else (0,)
    return out, features[0].new_empty(hidden)


@torch.library.custom_op("medmo_kernels::projector_backward", mutates_args=())
def _projector_backward(
    grads: list[Tensor],
    features: list[Tensor],
    norm_weight: list[Tensor],
    norm_bias: list[Tensor],
    fc1_weight: list[Tensor],
    fc1_bias: list[Tensor],
    fc2_weight: list[Tensor],
    fc2_bias: list[Tensor],
    hidden: Tensor,
    merge_size: int,
    eps: float,
    of_features: bool,
    of_weights: bool,
) -> tuple[
    list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]
]:  # = _Lists, which torch.library does not resolve
    from .launch import backward

    weights = _rows(norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    by_x, by_w = backward(grads, features, weights, hidden, merge_size, eps, of_features, of_weights)
    return by_x, *_columns(by_w)


@_projector_backward.register_fake
def _(grads: list[Tensor], features: list[Tensor], *rest: Any) -> _Lists:
    *columns, _, _, _, of_features, of_weights = rest
    weights = _rows(*columns)
    by_x = [torch.empty_like(x) for x in features] if of_features else []
    by_w = [ProjectorWeights(*map(torch.empty_like, w)) for w in weights] if of_weights else []
    return by_x, *_columns(by_w)


def _rows(*columns: list[Tensor]) -> list[ProjectorWeights]:
    return [ProjectorWeights(*row) for row in zip(*columns, strict=True)]


def _columns(rows: list[ProjectorWeights]) -> Any:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in ProjectorWeights._fields]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[list[Tensor], Tensor]) -> None:
    *lists, ctx.merge_size, ctx.eps, _ = inputs
    hidden = output[1]
    ctx.group = len(lists[0])
    ctx.mark_non_differentiable(hidden)
    ctx.set_materialize_grads(False)  # else a tensor of zeros as large as the pre-activation
    ctx.save_for_backward(*(t for tensors in lists for t in tensors), hidden)


def _backward(ctx: Any, grads: list[Tensor | None], *_: None) -> tuple[Any, ...]:
    *flat, hidden = ctx.saved_tensors
    group = ctx.group
    lists = [flat[i : i + group] for i in range(0, len(flat), group)]
    of_features, of_weights = any(ctx.needs_input_grad[0]), any(any(needs) for needs in ctx.needs_input_grad[1:7])
    shapes = [(x.shape[0], w.shape[0]) for x, w in zip(hidden, lists[5], strict=True)]
    given = [hidden.new_zeros(s) if g is None else g for g, s in zip(grads, shapes, strict=True)]
    found = _projector_backward(given, *lists, hidden, ctx.merge_size, ctx.eps, of_features, of_weights)
    return *(gradients or [None] * group for gradients in found), None, None, None


_projector.register_autograd(_backward, setup_context=_save)

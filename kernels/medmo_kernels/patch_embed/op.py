"""Registration of patch_embed. CPU: one matrix product with the normalisation folded in; CUDA: Triton for uint8 pixels.

The gradient of the weights is a plain matrix product of the converted pixels on every device: converting 8 images of
6,400 patches moves 118 MB (at least 27 us on an H200), the product is 91 GFLOP (at least 115 us), and the vendor's
library should come nearer to that than a kernel that converts bytes on the way to shared memory would. `F.linear` on
rows of both frames does twice the work. The gradient of the position table is another kernel. Rows of floats are a
composition of torch ops on every device.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import back_ends, runtime
from ..back_ends import Choice
from ..fit import dense
from ..transforms import as_autocast, refuse_transforms
from .plain import embed, weight_product
from .reference import MAX_PIXEL, Call, bilinear_taps, patch_embed_reference

OP = "patch_embed"
BACK_ENDS = back_ends.declare("patch_embed", OP, ("triton", "linear"), plain="linear")
"""Names that the table may use, for uint8 pixels."""
FEW_PATCHES = 8192
"""About one large image: up to here launches and the fold of the weights weigh."""


def patch_embed(
    patches: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    position_table: Tensor | None = None,
    coordinates: Tensor | None = None,
    *,
    image_mean: Sequence[float] = (0.5, 0.5, 0.5),
    image_std: Sequence[float] = (0.5, 0.5, 0.5),
) -> Tensor:
    """Embed patches and add learned positions.

    A still shows the same frame to every temporal tap, so its weights are summed over the taps. Raw pixels u enter
    about a centre c, 127.5 or in Triton 128: W ((u / 255 - mean) / std) + b becomes [W / (255 std)] (u - c) +
    [b + W ((c / 255 - mean) / std)]. A patch at (row, column) of the position table adds the four entries around it,
    weighted bilinearly.

    Shapes: N patches, D embedding width, p patch size, T frames in a video row, S entries along a side of the table.
    Units: coordinates in steps of the table, 0 .. S - 1; a place beyond the table reads its edge.
    Numerics: products are summed, scaled and added to bias and positions in fp32 and rounded once; 16-bit weights meet
        pixels that are exact (Triton) or are widened to fp32 (CPU). Position weights are fp32 for every dtype.
        Deterministic, gradients too.

    Args:
        patches: (N, 3 * p * p) stills or (N, 3 * T * p * p) video rows [C, T, p, p]; uint8 pixels, or floats that are
            normalised already.
        weight: (D, 3, T, p, p) or, without a time axis, (D, 3, p, p).
        bias: (D,) or None.
        position_table: (S * S, D) or None.
        coordinates: (N, 2) row and column of each patch, fp32; with a table, and only then. Receives no gradient.
        image_mean: mean per channel, of pixels scaled to [0, 1]; for uint8 pixels.
        image_std: standard deviation per channel; for uint8 pixels.

    Returns:
        (N, D) in the dtype of `weight`; under autocast in that of `F.linear`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.

    Reference: Qwen3-VL's patch embedding and interpolated positions, transformers `Qwen3VLVisionModel`.
    """
    call = Call(patches, weight, bias, position_table, coordinates, tuple(image_mean), tuple(image_std))
    _check(call)
    call = call._replace(
        weight=as_autocast(weight), bias=as_autocast(bias), position_table=as_autocast(position_table)
    )
    if runtime.mode() == "reference":
        return patch_embed_reference(*call[:5], image_mean=call.image_mean, image_std=call.image_std)
    if patches.dtype != torch.uint8:
        return embed(call)
    refuse_transforms("patch_embed", *call[1:5])
    return _patch_embed(*call)


def choices(device: torch.device) -> dict[str, Choice]:
    """Say what serves patch_embed on a device: pixels, their weight gradient, rows of floats."""
    pixels = back_ends.choices(OP, device, torch.bfloat16)
    if all(choice.backend == "reference" for choice in pixels.values()):
        return {"all": next(iter(pixels.values()))}
    matmul = Choice(
        "matmul", "a product of converted pixels", (("triton", "would convert bytes on the way to shared memory"),)
    )
    odd = Choice("linear", "plain torch ops", (("triton", "reads pixels as words of four"),))
    floats = Choice("linear", "plain torch ops", (("triton", "nothing to fold: rows are normalised"),))
    return {f"uint8 pixels, {shape}": choice for shape, choice in pixels.items()} | {
        "uint8 pixels, gradient of weight and bias": matmul,
        "uint8 pixels of odd patch sizes": odd,
        "floats": floats,
    }


def shape_class(patches: Tensor) -> str:
    """Return the name that the table has for a class of shapes."""
    return f"{'at most' if patches.shape[0] <= FEW_PATCHES else 'more than'} {FEW_PATCHES} patches"


def _backend(patches: Tensor, weight: Tensor) -> str:
    return back_ends.choose(OP, shape_class(patches), weight.device, weight.dtype).backend


@torch.library.custom_op("medmo_kernels::patch_embed", mutates_args=())
def _patch_embed(
    patches: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position_table: Tensor | None,
    coordinates: Tensor | None,
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> Tensor:
    call = Call(patches, weight, bias, position_table, coordinates, image_mean, image_std)
    if patches.shape[1] % 4 == 0 and _backend(patches, weight) == "triton":
        from .launch import forward

        return forward(call)
    return embed(call)


@_patch_embed.register_fake
def _(patches: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return weight.new_empty(patches.shape[0], weight.shape[0])


@torch.library.custom_op("medmo_kernels::patch_embed_table_gradient", mutates_args=())
def _table_gradient(grad: Tensor, coordinates: Tensor, position_table: Tensor) -> Tensor:
    if back_ends.choose(OP, None, grad.device, grad.dtype).backend == "triton":
        from .launch import table_gradient

        return table_gradient(grad, coordinates, position_table)
    entries, weights = bilinear_taps(coordinates, math.isqrt(position_table.shape[0]))
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    total = wide.new_zeros(position_table.shape)
    for entry, share in zip(entries.unbind(1), weights.unbind(1), strict=True):
        part = wide * share[:, None]
        # On CUDA index_add_ adds in no fixed order; index_put_ sorts there, and is slow on the CPU.
        if grad.device.type == "cpu":
            total.index_add_(0, entry, part)
        else:
            total.index_put_((entry,), part, accumulate=True)
    return total.to(position_table.dtype)


@_table_gradient.register_fake
def _(grad: Tensor, coordinates: Tensor, position_table: Tensor) -> Tensor:
    return position_table.new_empty(position_table.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    patches, weight, bias, position_table, coordinates, ctx.image_mean, ctx.image_std = inputs
    ctx.save_for_backward(patches, weight, bias, position_table, coordinates)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    patches, weight, bias, position_table, coordinates = ctx.saved_tensors
    _, needs_weight, needs_bias, needs_table, *_ = ctx.needs_input_grad
    wide = torch.promote_types(weight.dtype, torch.float32)
    grad_weight, grad_bias, grad_table = None, None, None
    column_sums = grad.sum(0, dtype=wide) if needs_bias or needs_weight else None
    if needs_bias and column_sums is not None:
        grad_bias = column_sums.to(bias.dtype)
    if needs_weight and column_sums is not None:
        taps = weight if weight.dim() == 5 else weight.unsqueeze(2)
        product = weight_product(grad, patches, weight).view(taps.shape[0], 3, -1, *taps.shape[3:])
        channels = []
        for channel, mean, std in zip(product.unbind(1), ctx.image_mean, ctx.image_std, strict=True):
            scaled = channel * (1 / (MAX_PIXEL * std))
            channels.append(scaled if mean == 0.5 else scaled + (0.5 - mean) / std * column_sums.view(-1, 1, 1, 1))
        # A still's one frame was seen by every tap.
        grad_weight = torch.stack(channels, dim=1).to(weight.dtype).expand_as(taps).reshape(weight.shape)
    if needs_table:
        grad_table = _table_gradient(dense(grad), coordinates, position_table)
    return None, grad_weight, grad_bias, grad_table, None, None, None


_patch_embed.register_autograd(_backward, setup_context=_save)


def _check(call: Call) -> None:
    patches, weight, bias, position_table, coordinates, image_mean, image_std = call
    if weight.dim() not in (4, 5) or weight.shape[1] != 3 or patches.dim() != 2:
        raise ValueError(
            f"patch_embed: patches {tuple(patches.shape)} and weight {tuple(weight.shape)}, expected (N, K) and "
            "(D, 3, T, p, p) or (D, 3, p, p)"
        )
    num_taps, area = (weight.shape[2] if weight.dim() == 5 else 1), weight.shape[-2] * weight.shape[-1]
    still, full, width = 3 * area, 3 * num_taps * area, patches.shape[1]
    if width not in (still, full):
        raise ValueError(
            f"patches have {width} values each; the encoder takes {still} (stills: 3 x {weight.shape[-2]} x "
            f"{weight.shape[-1]})" + (f" or {full} (groups of {num_taps} frames)" if full != still else "")
        )
    if not (patches.dtype == torch.uint8 or patches.is_floating_point()):
        raise ValueError(f"patch_embed: patches are {patches.dtype}, expected uint8 pixels or normalised floats")
    embed_dim = weight.shape[0]
    if bias is not None and tuple(bias.shape) != (embed_dim,):
        raise ValueError(
            f"patch_embed: bias {tuple(bias.shape)}, weight {tuple(weight.shape)}: expected ({embed_dim},)"
        )
    if (position_table is None) != (coordinates is None):
        raise ValueError("patch_embed: only one of position_table and coordinates is given: give both or neither")
    if position_table is not None and coordinates is not None:
        shape = tuple(position_table.shape)
        if len(shape) != 2 or shape[1] != embed_dim or math.isqrt(shape[0]) ** 2 != shape[0] or shape[0] == 0:
            raise ValueError(
                f"patch_embed: position_table {shape}, weight {tuple(weight.shape)}: expected (S * S, {embed_dim})"
            )
        if tuple(coordinates.shape) != (patches.shape[0], 2) or not coordinates.is_floating_point():
            raise ValueError(
                f"patch_embed: coordinates {tuple(coordinates.shape)} {coordinates.dtype}, patches "
                f"{tuple(patches.shape)}: expected ({patches.shape[0]}, 2) floats"
            )
    if len(image_mean) != 3 or len(image_std) != 3:
        raise ValueError(f"patch_embed: image_mean {image_mean} and image_std {image_std}, expected three numbers each")
    given = (weight, bias, position_table, coordinates)
    strangers = {str(t.device) for t in given if t is not None and t.device != patches.device}
    if strangers:
        raise ValueError(
            f"patch_embed: patches are on {patches.device}, other arguments on {', '.join(sorted(strangers))}"
        )

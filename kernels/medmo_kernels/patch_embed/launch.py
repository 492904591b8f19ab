"""Launchers of patch_embed: the forward, the packing of its weights, and the gradient of the position table."""

# The options of a launch are no parameters of the kernel.
# pyright: reportCallIssue=false, reportArgumentType=false

import math

import torch
from torch import Tensor

from ..fit import dense, dense_fp32, words
from ..grids import cdiv, next_power_of_2
from ..placement import on_device_of_tensors
from ..tables import tuned
from . import triton_kernel as kernels
from .reference import MAX_PIXEL, Call

ROOM = "patch_embed"
CENTRE = 128 / MAX_PIXEL
"""What the kernel subtracts from pixels, as a share of the largest one."""


@on_device_of_tensors
def forward(call: Call) -> Tensor:
    """Launch the forward of uint8 patches whose width is a multiple of 4: (N, D) in the dtype of the weight."""
    weight, table = call.taps, call.position_table
    num_rows, width = call.patches.shape
    embed_dim, num_taps, num_pixels = weight.shape[0], weight.shape[2], weight.shape[3] * weight.shape[4]
    blocks, options, _ = tuned(ROOM, "forward", weight)
    packed_width = cdiv(width, blocks["BLOCK_K"]) * blocks["BLOCK_K"]
    # In fp16 for bf16 too: pixels become fp16 in half the instructions, and each column has its own power of two.
    packed_dtype = torch.float32 if weight.dtype == torch.float32 else torch.float16
    packed = weight.new_empty(embed_dim, packed_width, dtype=packed_dtype)
    factors = weight.new_empty(2, embed_dim, dtype=torch.float32)
    out = weight.new_empty(num_rows, embed_dim)
    if out.numel() == 0:
        return out
    # With one deviation for all channels the packed weights are the given ones, or their sums, by a power of two.
    scale = 1 / (MAX_PIXEL * call.image_std[0])
    ratios = [call.image_std[0] / std for std in call.image_std]
    shifts = [(CENTRE - mean) / std for mean, std in zip(call.image_mean, call.image_std, strict=True)]
    kernels.pack_kernel[(embed_dim,)](
        dense(weight), dense(call.bias), packed, factors, scale, *ratios, *shifts,
        TAPS=num_taps, FOLDS=width == 3 * num_pixels, PIXELS=num_pixels, WIDTH=width, PACKED_WIDTH=packed_width,
        HAS_BIAS=call.bias is not None, BLOCK_K=blocks["BLOCK_K"], BLOCK=next_power_of_2(packed_width),
        **tuned(ROOM, "pack", weight).options,
    )  # fmt: skip
    if width % blocks["BLOCK_K"]:  # the masks of a ragged last tile need more registers
        options = {**options, "maxnreg": 255}
    grid = (cdiv(num_rows, blocks["BLOCK_M"]) * cdiv(embed_dim, blocks["BLOCK_N"]),)
    kernels.forward_kernel[grid](
        words(call.patches), packed, factors, dense(table), dense_fp32(call.coordinates), out, num_rows,
        NUM_WORDS=width // 4, EMBED_DIM=embed_dim, SIDE=1 if table is None else math.isqrt(table.shape[0]),
        HAS_POSITIONS=table is not None, **blocks, **options,
    )  # fmt: skip
    return out


@on_device_of_tensors
def table_gradient(grad: Tensor, coordinates: Tensor, position_table: Tensor) -> Tensor:
    """Launch the gradient of the position table.

    Args:
        grad: (N, D) gradient of the tokens.
        coordinates: (N, 2) row and column of each patch.
        position_table: (S * S, D) table; only its shape and dtype count.

    Returns:
        (S * S, D) in the dtype of `position_table`.
    """
    num_rows, embed_dim = grad.shape
    side = math.isqrt(position_table.shape[0])
    entries = torch.empty(num_rows, 4, dtype=torch.int32, device=grad.device)
    weights = torch.empty(num_rows, 4, dtype=torch.float32, device=grad.device)
    out = position_table.new_empty(side * side, embed_dim)
    if grad.numel() == 0:
        return out.zero_()
    blocks, options, _ = tuned(ROOM, "taps", grad)
    kernels.taps_kernel[(cdiv(num_rows, blocks["BLOCK"]),)](
        dense_fp32(coordinates), entries, weights, num_rows, SIDE=side, **blocks, **options
    )
    # Stable: the taps of one entry stay in the order of their patches.
    sorted_entries, order = torch.sort(entries.flatten(), stable=True)
    bounds = torch.arange(side * side + 1, dtype=torch.int32, device=grad.device)
    offsets = torch.searchsorted(sorted_entries, bounds, out_int32=True)
    blocks, options, _ = tuned(ROOM, "table_gradient", grad)
    kernels.table_gradient_kernel[(side * side, cdiv(embed_dim, blocks["BLOCK_N"]))](
        dense(grad), order, weights, offsets, out, EMBED_DIM=embed_dim, **blocks, **options
    )
    return out

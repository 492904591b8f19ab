"""Patch embedding in torch ops, the normalisation folded into one product; serves the CPU, and rows of floats."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import MAX_PIXEL, Call, bilinear_taps

PIXEL_CENTRE = 127.5
"""Pixels are centred here: u - 127.5 has 8 significant bits, exact in bf16, and is 0 for a mean of 0.5."""


def weight_product(grad: Tensor, patches: Tensor, weight: Tensor) -> Tensor:
    """Return grad.T @ (patches - 127.5), (D, K), in fp32 (float64 for float64)."""
    if grad.device.type == "cuda" and grad.element_size() == 2:
        return torch.mm(grad.T, centred(patches, grad.dtype), out_dtype=torch.float32)
    wide = torch.promote_types(weight.dtype, torch.float32)
    return grad.to(wide).T @ patches.to(wide).sub_(PIXEL_CENTRE)


def centred(patches: Tensor, dtype: torch.dtype) -> Tensor:
    """Return pixels about their centre in 16 bits, which hold them exactly."""
    return torch.sub(patches, PIXEL_CENTRE, out=torch.empty(patches.shape, dtype=dtype, device=patches.device))


def embed(call: Call) -> Tensor:
    """Compute the op by `F.linear` and `F.embedding_bag`; differentiable.

    In fp32 (float64 for float64). On CUDA products run in the weights' dtype, those of pixels with an fp32 result:
    there 16 bits are ten times as fast, on the CPU they are slower.
    """
    patches, weight, bias, position_table, coordinates, image_mean, image_std = call
    dtype = torch.promote_types(weight.dtype, torch.float32)
    taps = call.taps.to(dtype)
    is_still = patches.shape[1] == taps[0, :, 0].numel()
    kernel = taps.sum(2, keepdim=True) if is_still and taps.shape[2] > 1 else taps
    offset = None if bias is None else bias.to(dtype)
    in_16_bits = patches.is_cuda and weight.element_size() == 2
    if patches.dtype == torch.uint8:
        rows = centred(patches, weight.dtype) if in_16_bits else patches.to(dtype).sub_(PIXEL_CENTRE)
        std = kernel.new_tensor(image_std)
        if any(mean != 0.5 for mean in image_mean):
            shift = kernel.sum((2, 3, 4)) @ ((0.5 - kernel.new_tensor(image_mean)) / std)
            offset = shift if offset is None else offset + shift
        kernel = kernel / (MAX_PIXEL * std).view(1, -1, 1, 1, 1)
    elif patches.is_cuda:
        rows, kernel = patches.to(weight.dtype), kernel.to(weight.dtype)
        offset = None if offset is None else offset.to(weight.dtype)
    else:
        rows = patches.to(dtype)
    if patches.dtype == torch.uint8 and in_16_bits:
        out = torch.mm(rows, kernel.flatten(1).to(weight.dtype).T, out_dtype=torch.float32)
        out = out if offset is None else out.add_(offset)
    else:
        out = F.linear(rows, kernel.flatten(1), offset)
    if position_table is not None and coordinates is not None:
        entries, weights = bilinear_taps(coordinates, math.isqrt(position_table.shape[0]))
        table = position_table.to(dtype)
        out = out + F.embedding_bag(entries, table, mode="sum", per_sample_weights=weights.to(dtype))
    return out.to(weight.dtype)

"""Tensors made to fit the kernels: each function returns its argument where it fits already, else a copy.

The rule of alignment: Triton copies 16 bytes at a time where it knows that every row begins at a multiple of 16 bytes.
So the pointer must be a multiple of 16, and the strides multiples of 8 elements: 16 bytes of a 16-bit dtype, 32 of
fp32. Launchers pass such strides in units of 8 (`strides_in_8`), from which the compiler knows.
"""

from typing import overload

import torch
from torch import Tensor

STRIDE = 8
"""Elements; the strides of an aligned tensor are multiples."""
POINTER = 16
"""Bytes; the pointer of an aligned tensor is a multiple."""


@overload
def dense(x: Tensor) -> Tensor:
    """Return a tensor that is contiguous."""


@overload
def dense(x: Tensor | None) -> Tensor | None:
    """Return a tensor that is contiguous, or None."""


def dense(x: Tensor | None) -> Tensor | None:
    """Return a tensor that is contiguous; None stays None."""
    return None if x is None else x.contiguous()


def dense_fp32(x: Tensor | None) -> Tensor | None:
    """Return a tensor that is contiguous and in fp32; None stays None."""
    return None if x is None else x.float().contiguous()


def unit_stride(x: Tensor) -> Tensor:
    """Return a tensor whose last axis has stride 1; the other strides may be any."""
    return x if x.stride(-1) == 1 else x.contiguous()


def dense_heads(x: Tensor) -> Tensor:
    """Return a (T, H, D) tensor in which the heads of a token lie one behind the other; tokens may lie apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def aligned(x: Tensor) -> Tensor:
    """Return a (T, H, D) tensor whose rows and heads keep to the rule of alignment."""
    fits = x.stride(2) == 1 and x.stride(0) % STRIDE == 0 and x.stride(1) % STRIDE == 0 and x.data_ptr() % POINTER == 0
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def strides_in_8(*tensors: Tensor) -> list[int]:
    """Return the row and head strides of aligned (T, H, D) tensors in units of 8 elements."""
    return [stride // STRIDE for x in tensors for stride in x.stride()[:2]]


def words(pixels: Tensor) -> Tensor:
    """Return (N, K) bytes as (N, K / 4) int32, contiguous and with an aligned pointer."""
    return dense_aligned(pixels).view(torch.int32)


def dense_aligned(x: Tensor) -> Tensor:
    """Return a tensor that is contiguous and whose pointer keeps to the rule of alignment."""
    x = x.contiguous()
    return x if x.data_ptr() % POINTER == 0 else x.clone()


def real(x: Tensor) -> Tensor:
    """Return a tensor of floats; whole numbers become fp32, which is exact up to 2^24."""
    return x if x.is_floating_point() else x.float()

"""Rotary positions: 2-D for patches, interleaved three-axis (M-RoPE) for text.

Shapes: T tokens, N patches, D head width. A table is a pair (cos, sin) of width D / 2: the two halves of a head turn
by the same angles, so half the width says everything.
Numerics: tables are always fp32; angles of float64 models too, as in the published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from medmo_kernels.attention import rotated

RopeTable = tuple[Tensor, Tensor]


@lru_cache(maxsize=32)
def inverse_frequencies(dim: int, theta: float, device: torch.device) -> Tensor:
    """Return theta ** (-2i / dim) for i = 0 .. dim / 2 - 1, fp32."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    return 1.0 / (theta**exponents)


def mrope_table(position_ids: Tensor, head_dim: int, theta: float, sections: Sequence[int]) -> RopeTable:
    """Build the table of interleaved M-RoPE.

    Frequency i follows the height axis when i % 3 == 1, the width axis when i % 3 == 2 (as far as their sections
    reach), and time otherwise.

    Args:
        position_ids: (3, T) temporal, height and width positions.
        head_dim: width D of a head.
        theta: base of the frequencies.
        sections: how many frequencies time, height and width own; they add up to D / 2.

    Returns:
        (cos, sin), each (T, D / 2) fp32.
    """
    frequencies = inverse_frequencies(head_dim, theta, position_ids.device)
    axis = _frequency_axes(tuple(sections), position_ids.device)
    angles = position_ids.to(torch.float32)[axis].transpose(0, 1) * frequencies
    return angles.cos(), angles.sin()


@lru_cache(maxsize=32)
def _frequency_axes(sections: tuple[int, ...], device: torch.device) -> Tensor:
    """Return, for each frequency, the position axis that drives it."""
    axes = torch.zeros(sum(sections), dtype=torch.int64)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes.to(device)


@lru_cache(maxsize=256)
def axial_table(
    height: int, width: int, merge_size: int, head_dim: int, theta: float, device: torch.device
) -> RopeTable:
    """Build the 2-D table of one image's patches, in merge order.

    The first half of the angles follows the row, the second half the column.

    Args:
        height: rows of patches.
        width: columns of patches.
        merge_size: patches along one side of a visual token.
        head_dim: width D of a head.
        theta: base of the frequencies.
        device: where the table lives.

    Returns:
        (cos, sin), each (height * width, D / 2) fp32.
    """
    frequencies = inverse_frequencies(head_dim // 2, theta, device)
    rows, columns = merge_order(height, width, merge_size, device)
    angles = torch.cat([axis.to(torch.float32)[:, None] * frequencies for axis in (rows, columns)], dim=1)
    return angles.cos(), angles.sin()


def merge_order(height: int, width: int, merge_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the row and the column of every patch when the patches of one visual token are consecutive.

    Returns:
        Two (height * width,) int64 tensors.

    Raises:
        ValueError: the grid does not divide into visual tokens.
    """
    if height % merge_size or width % merge_size:
        raise ValueError(
            f"a grid of {height} x {width} patches does not divide into {merge_size} x {merge_size} tokens"
        )
    raster = torch.arange(height * width, device=device)
    blocks = raster.view(height // merge_size, merge_size, width // merge_size, merge_size)
    ordered = blocks.transpose(1, 2).flatten()
    return ordered // width, ordered % width


def apply_rope(x: Tensor, table: RopeTable) -> Tensor:
    """Rotate every head by its token's angles.

    Shapes: (T, H, D) with tables of (T, D / 2).
    Numerics: 16-bit inputs are rotated in fp32 and cast back once.

    Args:
        x: (T, H, D) queries or keys.
        table: (cos, sin).

    Returns:
        (T, H, D) in the dtype of `x`.
    """
    return rotated(x, table)

"""Grids of patches, and learned positions that are resized to them.

Shapes: N patches in merge order, D embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modules.rope import merge_order


def frame_grids(image_grid_thw: Tensor, num_rows: int) -> list[tuple[int, int]]:
    """Return rows and columns of patches of every frame, frames of one video apart.

    Args:
        image_grid_thw: (I, 3) grids in patches.
        num_rows: rows of patches that came with them.

    Raises:
        ValueError: the grids hold another number of patches.
    """
    frames = [(height, width) for count, height, width in image_grid_thw.tolist() for _ in range(count)]
    total = sum(height * width for height, width in frames)
    if total != num_rows:
        raise ValueError(f"the image grids hold {total} patches, {num_rows} rows of patches were given")
    return frames


def resized_positions(
    table: Tensor, frames: list[tuple[int, int]], merge_size: int, *, mode: str, antialias: bool
) -> Tensor:
    """Resize a square table of learned positions to each grid.

    Numerics: resized in fp32 for tables of 16 bits, then cast back.

    Args:
        table: (side * side, D).
        frames: rows and columns of patches, one pair per frame.
        merge_size: patches along one side of a visual token.
        mode: "bilinear" or "bicubic".
        antialias: widen the filter when the grid is smaller than the table.

    Returns:
        (N, D) in merge order, frames end to end.
    """
    side = round(table.shape[0] ** 0.5)
    wide = table if table.dtype == torch.float64 else table.float()
    square = wide.T.unflatten(1, (side, side)).unsqueeze(0)
    resized = {}
    for height, width in dict.fromkeys(frames):
        grid = F.interpolate(square, size=(height, width), mode=mode, align_corners=False, antialias=antialias)
        rows, columns = merge_order(height, width, merge_size, table.device)
        resized[height, width] = grid[0, :, rows, columns].T.to(table.dtype)
    return torch.cat([resized[frame] for frame in frames])

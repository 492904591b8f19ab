"""Patches to tokens: the parameters of the op `patch_embed`, and where the patches of a grid lie on a position table.

Shapes: N patches, D embedding width, p patch size, T frames in a video row.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from medmo_kernels.patch_embed import patch_embed

from .rope import merge_order

__all__ = ["PatchEmbed", "grid_coordinates", "patch_embed", "position_coordinates"]


class PatchEmbed(nn.Module):
    """Embedding of patches that are already cut out.

    State: `proj.weight` (D, 3, T, p, p), `proj.bias` (D,), the layout of a 3-D convolution.

    Args:
        patch_size: side of a patch.
        temporal_patch_size: frames in a video row.
        embed_dim: width D.
        image_mean: mean per channel, of pixels scaled to [0, 1].
        image_std: standard deviation per channel.
    """

    def __init__(
        self,
        patch_size: int,
        temporal_patch_size: int,
        embed_dim: int,
        *,
        image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        image_std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.image_mean, self.image_std = image_mean, image_std
        kernel = (temporal_patch_size, patch_size, patch_size)
        # The convolution only holds the parameters under their official names; it never runs.
        self.proj = nn.Conv3d(3, embed_dim, kernel, stride=kernel, device=device, dtype=dtype)

    def forward(
        self, patches: Tensor, position_table: Tensor | None = None, coordinates: Tensor | None = None
    ) -> Tensor:
        """Embed (N, 3 * p * p) or (N, 3 * T * p * p) patches into (N, D).

        Args:
            patches: uint8 pixels or normalised floats.
            position_table: (side * side, D) learned positions to add, or None.
            coordinates: (N, 2) places on the table, from `position_coordinates`.
        """
        return patch_embed(
            patches,
            self.proj.weight,
            self.proj.bias,
            position_table,
            coordinates,
            image_mean=self.image_mean,
            image_std=self.image_std,
        )


@lru_cache(maxsize=256)
def grid_coordinates(height: int, width: int, side: int, merge_size: int, device: torch.device) -> Tensor:
    """Say where on a square position table each patch of a grid lies.

    The corners of the grid lie on the corners of the table.

    Args:
        height: rows of patches.
        width: columns of patches.
        side: entries along one side of the table.
        merge_size: patches along one side of a visual token; the result is in merge order.
        device: where the result lives.

    Returns:
        (height * width, 2) fp32 row and column, 0 .. side - 1.
    """
    rows, columns = merge_order(height, width, merge_size, device)
    # In the order of operations of the published code: what it rounds is rounded the same way.
    return torch.stack(
        [index.to(torch.float32) * (side - 1) / max(size - 1, 1) for index, size in ((rows, height), (columns, width))],
        dim=1,
    )


def position_coordinates(grids: list[tuple[int, int]], side: int, merge_size: int, device: torch.device) -> Tensor:
    """Say where on a square position table the patches of several grids lie.

    Args:
        grids: rows and columns of patches, one pair per image.
        side: entries along one side of the table.
        merge_size: patches along one side of a visual token.
        device: where the result lives.

    Returns:
        (N, 2) fp32 in merge order, images end to end.
    """
    pieces = [grid_coordinates(height, width, side, merge_size, device) for height, width in grids]
    return torch.cat(pieces) if pieces else torch.empty(0, 2, device=device)

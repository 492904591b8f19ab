"""Patches to tokens: a matrix product with the normalisation folded in, and learned positions of any grid.

Shapes: N patches, D embedding width, p patch size, T frames in a video row.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rope import merge_order

PIXEL_CENTRE = 127.5
"""uint8 pixels are centred here first: exact in bf16, and the folded bias stays small."""


def embed_patches(
    patches: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    image_mean: tuple[float, ...],
    image_std: tuple[float, ...],
) -> Tensor:
    """Project patches by one matrix product.

    A still shows the same frame to every temporal tap, so its weights are summed over the taps. Raw pixels u enter as
    u - 127.5: W ((u / 255 - mean) / std) + b becomes [W / (255 std)] (u - 127.5) + [b + W ((0.5 - mean) / std)], with
    the brackets computed once per call.

    Args:
        patches: (N, 3 * p * p) stills or (N, 3 * T * p * p) video rows; uint8 pixels or normalised floats.
        weight: (D, 3, T, p, p) or, without a time axis, (D, 3, p, p).
        bias: (D,) or None.
        image_mean: mean per channel, of pixels scaled to [0, 1].
        image_std: standard deviation per channel.

    Returns:
        (N, D) in the dtype of `weight`.

    Raises:
        ValueError: the width of the rows fits neither form.
    """
    taps = weight if weight.dim() == 5 else weight.unsqueeze(2)
    still, full = taps[:, :, 0].numel() // taps.shape[0], taps.numel() // taps.shape[0]
    width = patches.shape[-1]
    if width not in (still, full):
        raise ValueError(
            f"patches have {width} values each; the encoder takes {still} (stills: 3 x {taps.shape[3]} x "
            f"{taps.shape[4]})" + (f" or {full} (groups of {taps.shape[2]} frames)" if full != still else "")
        )
    kernel = taps if width == full else taps.sum(2, keepdim=True)
    if patches.dtype == torch.uint8:
        std = torch.tensor(image_std, dtype=kernel.dtype, device=kernel.device)
        if any(mean != 0.5 for mean in image_mean):
            shift = (0.5 - torch.tensor(image_mean, dtype=kernel.dtype, device=kernel.device)) / std
            offset = kernel.sum((2, 3, 4)) @ shift
            bias = offset if bias is None else bias + offset
        kernel = kernel / (255.0 * std).view(1, -1, 1, 1, 1)
        patches = patches.to(kernel.dtype).sub_(PIXEL_CENTRE)
    return F.linear(patches.to(kernel.dtype), kernel.flatten(1), bias)


class PatchEmbed(nn.Module):
    """Embed patches that are already cut out.

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

    def forward(self, patches: Tensor) -> Tensor:
        """Embed (N, 3 * p * p) or (N, 3 * T * p * p) patches into (N, D)."""
        return embed_patches(
            patches, self.proj.weight, self.proj.bias, image_mean=self.image_mean, image_std=self.image_std
        )


@lru_cache(maxsize=256)
def bilinear_taps(height: int, width: int, side: int, merge_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Say which four entries of a square position table each patch of a grid reads, and with what weights.

    The corners of the grid lie on the corners of the table.

    Args:
        height: rows of patches.
        width: columns of patches.
        side: entries along one side of the table.
        merge_size: patches along one side of a visual token; the result is in merge order.
        device: where the result lives.

    Returns:
        (height * width, 4) int64 indices into the flattened table, and as many fp32 weights that add up to 1.
    """
    rows, columns = merge_order(height, width, merge_size, device)
    row_taps, row_weights = _linear_taps(rows, height, side)
    column_taps, column_weights = _linear_taps(columns, width, side)
    indices = row_taps[:, :, None] * side + column_taps[:, None, :]
    weights = row_weights[:, :, None] * column_weights[:, None, :]
    return indices.flatten(1), weights.flatten(1)


def _linear_taps(index: Tensor, size: int, side: int) -> tuple[Tensor, Tensor]:
    source = index.to(torch.float32) * (side - 1) / max(size - 1, 1)
    lower = source.floor()
    fraction = source - lower
    taps = torch.stack([lower, lower + 1], dim=1).long().clamp(0, side - 1)
    return taps, torch.stack([1 - fraction, fraction], dim=1)


def interpolate_positions(table: Tensor, grids: list[tuple[int, int]], merge_size: int) -> Tensor:
    """Read a square table of learned positions at the patches of each grid.

    Args:
        table: (side * side, D).
        grids: rows and columns of patches, one pair per image.
        merge_size: patches along one side of a visual token.

    Returns:
        (N, D) positions in merge order, images end to end; fp32 for tables of 16 bits.
    """
    side = round(table.shape[0] ** 0.5)
    distinct = list(dict.fromkeys(grids))
    taps = [bilinear_taps(height, width, side, merge_size, table.device) for height, width in distinct]
    indices, weights = torch.cat([index for index, _ in taps]), torch.cat([weight for _, weight in taps])
    positions = (F.embedding(indices, table) * weights.unsqueeze(-1)).sum(1)
    if len(distinct) == 1:
        return positions.repeat(len(grids), 1)
    pieces = dict(zip(distinct, positions.split([height * width for height, width in distinct]), strict=True))
    return torch.cat([pieces[grid] for grid in grids])

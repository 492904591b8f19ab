"""Patch embedding in plain PyTorch: normalise, show a still to every tap, multiply, add interpolated positions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PIXEL = 255.0


class Call(NamedTuple):
    """Arguments of a call, checked; see `patch_embed`."""

    patches: Tensor
    weight: Tensor
    bias: Tensor | None
    position_table: Tensor | None
    coordinates: Tensor | None
    image_mean: Sequence[float]
    image_std: Sequence[float]

    @property
    def taps(self) -> Tensor:
        """Return the weight with a time axis: (D, 3, T, p, p)."""
        return self.weight if self.weight.dim() == 5 else self.weight.unsqueeze(2)


def patch_embed_reference(
    patches: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    position_table: Tensor | None = None,
    coordinates: Tensor | None = None,
    *,
    image_mean: Sequence[float] = (0.5, 0.5, 0.5),
    image_std: Sequence[float] = (0.5, 0.5, 0.5),
) -> Tensor:
    """Define `patch_embed`: arguments and result as there; in fp32 (float64 for float64 weights), rounded once.

    Returns:
        (N, D) in the dtype of `weight`.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    taps = (weight if weight.dim() == 5 else weight.unsqueeze(2)).to(dtype)
    channels, num_taps = taps.shape[1:3]
    frames = patches.unflatten(1, (channels, -1, taps.shape[3] * taps.shape[4])).to(dtype)
    if patches.dtype == torch.uint8:
        mean, std = (torch.tensor(list(v), dtype=dtype, device=weight.device) for v in (image_mean, image_std))
        frames = (frames / MAX_PIXEL - mean[:, None, None]) / std[:, None, None]
    rows = frames.expand(-1, -1, num_taps, -1).flatten(1)
    out = F.linear(rows, taps.flatten(1), None if bias is None else bias.to(dtype))
    if position_table is not None and coordinates is not None:
        entries, weights = bilinear_taps(coordinates, round(position_table.shape[0] ** 0.5))
        out = out + (F.embedding(entries, position_table).to(dtype) * weights.unsqueeze(-1)).sum(1)
    return out.to(weight.dtype)


def bilinear_taps(coordinates: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Say which four entries of a square table a place reads, and with what weights.

    Numerics: fp32, for every dtype of the table.

    Args:
        coordinates: (N, 2) row and column in table units, 0 .. side - 1; a place beyond the table is one on its edge.
        side: entries along one side of the table.

    Returns:
        (N, 4) int64 entries of the flattened table, and as many fp32 weights that add up to 1.
    """
    places = coordinates.detach().to(torch.float32).clamp(0, side - 1)
    lower = places.floor()
    fraction = places - lower
    taps = torch.stack([lower, lower + 1], dim=2).long().clamp(0, side - 1)  # (N, axis, tap)
    weights = torch.stack([1 - fraction, fraction], dim=2)
    entries = taps[:, 0, :, None] * side + taps[:, 1, None, :]
    return entries.flatten(1), (weights[:, 0, :, None] * weights[:, 1, None, :]).flatten(1)

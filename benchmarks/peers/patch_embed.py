"""Patch embedding as transformers has it: float32 rows, a product with both frames' weights, then the positions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medmo_kernels.spec import Arguments

from .peer import Peer, compiled


def _processor_rows(arguments: Arguments) -> Arguments:
    """Give what transformers' processor would: float32 rows, normalised, the frame there twice."""
    patches, weight = arguments["patches"], arguments["weight"]
    rows = patches
    if patches.dtype == torch.uint8:
        mean, std = (torch.tensor(arguments[name], device=patches.device) for name in ("image_mean", "image_std"))
        channels = (patches.float() / 255.0).unflatten(1, (3, -1))
        rows = ((channels - mean[:, None]) / std[:, None]).flatten(1)
    width = weight[0].numel()
    if rows.shape[1] != width:
        frames = weight.shape[2]
        rows = rows.unflatten(1, (3, 1, -1)).expand(-1, -1, frames, -1).flatten(1)
    return {**arguments, "patches": rows.contiguous()}


def _with_positions(tokens: Tensor, table: Tensor | None, coordinates: Tensor | None) -> Tensor:
    """Add bilinear positions as transformers does: four gathers, four weights, a sum."""
    if table is None or coordinates is None:
        return tokens
    side = round(table.shape[0] ** 0.5)
    low = coordinates.floor()
    high = (low + 1).clamp(max=side - 1)
    (top, left), (bottom, right), (down, across) = low.T, high.T, (coordinates - low).T
    index = torch.stack([top * side + left, top * side + right, bottom * side + left, bottom * side + right]).long()
    shares = [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]
    weights = torch.stack(shares).to(table.dtype)
    return tokens + (F.embedding(index, table) * weights[..., None]).sum(0)


def _conv3d(*, patches: Tensor, weight: Tensor, bias: Tensor | None, position_table: Tensor | None,
            coordinates: Tensor | None, **_: Any) -> Tensor:  # fmt: skip
    volumes = patches.to(weight.dtype).view(-1, *weight.shape[1:])
    tokens = F.conv3d(volumes, weight, bias, stride=weight.shape[2:]).flatten(1)
    return _with_positions(tokens, position_table, coordinates)


def _linear(*, patches: Tensor, weight: Tensor, bias: Tensor | None, position_table: Tensor | None,
            coordinates: Tensor | None, **_: Any) -> Tensor:  # fmt: skip
    return _with_positions(F.linear(patches.to(weight.dtype), weight.flatten(1), bias), position_table, coordinates)


PEERS = {
    "transformers, Conv3d": Peer(_conv3d, prepare=_processor_rows),
    "transformers, linear form": Peer(_linear, prepare=_processor_rows),
    "linear form, compiled": Peer(compiled(_linear), cuda=True, prepare=_processor_rows),
}

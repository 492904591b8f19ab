"""Boxes on pictures that a model should look at while it says certain tokens.

Shapes: L looks, B boxes of all looks, M visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Grid = tuple[int, int, int]
"""Frames, rows and columns of visual tokens of a picture."""


@dataclass(frozen=True)
class Looks:
    """Looks of a document, or of documents that share their pictures.

    Attributes:
        tokens: (L,) int64 positions of the tokens that are said meanwhile, each with a label.
        weights: (L,) float32, what each counts.
        look_of: (B,) int64, the look that a box belongs to. A look without a box finds nothing in the pictures.
        boxes: (B, 4) float32 x0, y0, x1, y1 as shares of the picture's sides.
        images: (B,) int64 pictures that the boxes lie in.
        grids: grids of the pictures, in the order of the text.
        start: position of the first token of the documents.
        stop: position behind their last.
    """

    tokens: Tensor
    weights: Tensor
    look_of: Tensor
    boxes: Tensor
    images: Tensor
    grids: tuple[Grid, ...]
    start: int
    stop: int

    def shift(self, by: int) -> Looks:
        """Return the looks with positions that many tokens further on."""
        return replace(self, tokens=self.tokens + by, start=self.start + by, stop=self.stop + by)

    def map(self, function: Callable[[Tensor], Tensor]) -> Looks:
        """Return the looks with a function applied to every tensor."""
        names = ("tokens", "weights", "look_of", "boxes", "images")
        return replace(self, **{name: function(getattr(self, name)) for name in names})

    def covers(self) -> Tensor:
        """Return which part of each visual token's cell the boxes of a look cover, at most 1.

        Returns:
            (L, M) of the dtype of `boxes`.
        """
        cells = torch.cat([_cells(i, *grid) for i, grid in enumerate(self.grids)]).to(self.boxes)
        image, y, x, height, width = cells.unbind(1)
        covers_x = _overlap(self.boxes[:, 0, None], self.boxes[:, 2, None], x, width)
        covers_y = _overlap(self.boxes[:, 1, None], self.boxes[:, 3, None], y, height)
        same = self.images[:, None] == image
        whole = self.boxes.new_zeros(len(self.tokens), len(cells))
        return whole.index_add(0, self.look_of, covers_x * covers_y * same).clamp(max=1.0)


def join_looks(parts: Sequence[Looks]) -> Looks:
    """Return the looks of documents that share their pictures as one; at least one part."""
    firsts = torch.tensor([0, *(len(part.tokens) for part in parts)]).cumsum(0).tolist()
    return replace(
        parts[0],
        tokens=torch.cat([part.tokens for part in parts]),
        weights=torch.cat([part.weights for part in parts]),
        look_of=torch.cat([part.look_of + first for part, first in zip(parts, firsts, strict=False)]),
        boxes=torch.cat([part.boxes for part in parts]),
        images=torch.cat([part.images for part in parts]),
        start=min(part.start for part in parts),
        stop=max(part.stop for part in parts),
    )


def _cells(image: int, frames: int, rows: int, columns: int) -> Tensor:
    """Return picture, row, column, rows and columns of each visual token: (frames * rows * columns, 5)."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    one = torch.stack([torch.full_like(y, image), y, x, torch.full_like(y, rows), torch.full_like(y, columns)], dim=-1)
    return one.view(-1, 5).repeat(frames, 1).float()


def _overlap(low: Tensor, high: Tensor, index: Tensor, count: Tensor) -> Tensor:
    """Return the part of cell `index` of `count` that lies between two shares of the side: (B, M)."""
    return (torch.minimum(high * count, index + 1) - torch.maximum(low * count, index)).clamp(min=0.0)

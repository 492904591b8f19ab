"""Images and videos of transformers' padded batches, dealt out to the rows of tokens that show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .positions import mrope_position_ids, vision_runs


class PaddedImages(NamedTuple):
    """All images, or all frame pairs of videos, of a padded batch.

    Attributes:
        token_id: id of their placeholder.
        blocks: (N, width) patches and (3,) grid of each, in order of appearance.
    """

    token_id: int
    blocks: list[tuple[Tensor, Tensor]]


class PlacedImages(NamedTuple):
    """Images in the order of the text.

    Attributes:
        patches: (N, width) patches of each image.
        grids: (3,) grid of each image.
        position_ids: (3, T) positions of all rows, end to end.
    """

    patches: list[Tensor]
    grids: list[Tensor]
    position_ids: Tensor


def place_images(
    rows: Sequence[tuple[str, Tensor]], images: PaddedImages, videos: PaddedImages, merge_size: int
) -> PlacedImages:
    """Give every block of placeholders its image or frame pair, row by row.

    Args:
        rows: name and (T,) tokens of each row, without padding.
        images: images of all rows.
        videos: frame pairs of all rows.
        merge_size: patches along one side of a visual token.

    Raises:
        ValueError: placeholders and grids disagree.
    """
    waiting = {kind.token_id: list(kind.blocks) for kind in (images, videos)}
    given = {token: len(blocks) for token, blocks in waiting.items()}
    patches: list[Tensor] = []
    grids: list[Tensor] = []
    positions: list[Tensor] = []
    for name, row in rows:
        first = len(grids)
        for token in vision_runs(row, waiting):
            if not waiting[token]:
                raise ValueError(f"{name}: more blocks of placeholder {token} than the {given[token]} image(s) given")
            rows_of_patches, grid = waiting[token].pop(0)
            patches.append(rows_of_patches)
            grids.append(grid)
        position_ids = mrope_position_ids(
            row,
            torch.stack(grids[first:]) if len(grids) > first else None,
            merge_size=merge_size,
            image_token_id=images.token_id,
            video_token_id=videos.token_id,
            sample_id=name,
        )
        positions.append(position_ids)
    if sum(given.values()) > len(grids):
        raise ValueError(
            f"{sum(given.values())} image(s) and frame pair(s) given, {len(grids)} block(s) of placeholders in the "
            f"text, which ends with {rows[-1][0]}"
        )
    return PlacedImages(patches, grids, torch.cat(positions, dim=1))


def split_frames(grid_thw: Tensor | None) -> Tensor | None:
    """Turn (V, 3) video grids into one (1, h, w) grid per frame pair."""
    if grid_thw is None:
        return None
    split = grid_thw.repeat_interleave(grid_thw[:, 0], dim=0).clone()
    split[:, 0] = 1
    return split


def split_patches(patches: Tensor | None, grid_thw: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Cut the rows of patches at the grids."""
    if patches is None or grid_thw is None:
        return []
    sizes = grid_thw.prod(dim=1).tolist()
    if sum(sizes) != patches.shape[0]:
        raise ValueError(f"the grids hold {sum(sizes)} patches, {patches.shape[0]} rows of patches were given")
    return list(zip(patches.split(sizes), grid_thw, strict=True))

"""Documents end to end in one batch, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..batch import IGNORE_INDEX, Batch
from .process import Item


@dataclass(frozen=True)
class PackingStats:
    """Count what a batch holds.

    Attributes:
        num_documents: documents.
        num_tokens: tokens of all documents.
        num_learned: tokens in the loss.
        num_patches: patches of all encoders.
    """

    num_documents: int
    num_tokens: int
    num_learned: int
    num_patches: int

    @classmethod
    def of(cls, batch: Batch) -> PackingStats:
        """Count a batch."""
        learned = 0 if batch.labels is None else int((batch.labels != IGNORE_INDEX).sum())
        patches = sum(rows.shape[0] for rows in batch.patches.values())
        return cls(batch.num_documents, batch.num_tokens, learned, patches)


def pack(items: Sequence[Item]) -> Batch:
    """Lay documents end to end.

    Args:
        items: at least one; documents without images may stand among documents with images. Items that hold the same
            arrays of patches show the same images, which enter the batch once.

    Returns:
        The batch. `labels` is None when no item has any; an item without labels among others is not learned.

    Raises:
        ValueError: no item, or items made for different encoders.
    """
    if not items:
        raise ValueError("nothing to pack: expected at least one item")
    names = [tuple(item.patches) for item in items if item.patches]
    if len(set(names)) > 1:
        raise ValueError(f"items made for different encoders cannot share a batch: {sorted(set(names))}")
    lengths = np.cumsum([0, *(len(item.input_ids) for item in items)])
    encoders = names[0] if names else ()
    seeing, image_index = _distinct([item for item in items if item.patches])
    return Batch(
        input_ids=torch.from_numpy(np.concatenate([item.input_ids for item in items])),
        labels=_labels(items),
        position_ids=torch.from_numpy(np.concatenate([item.position_ids for item in items], axis=1)),
        cu_seqlens=torch.from_numpy(lengths.astype(np.int32)),
        patches={n: torch.from_numpy(np.concatenate([i.patches[n] for i in seeing])) for n in encoders},
        image_grid_thw={n: torch.from_numpy(np.concatenate([i.image_grid_thw[n] for i in seeing])) for n in encoders},
        image_index=image_index,
        sample_ids=tuple(item.sample.id for item in items),
    )


def _distinct(seeing: Sequence[Item]) -> tuple[list[Item], Tensor | None]:
    """Return one item per set of images, and which of their images each document shows, where any is shown twice."""
    first: dict[tuple[int, ...], tuple[int, int]] = {}  # identity of the arrays -> their first image, and how many
    kept: list[Item] = []
    shown: list[int] = []
    num_images = 0
    for item in seeing:
        key = tuple(id(rows) for rows in item.patches.values())
        if key not in first:
            count = len(next(iter(item.image_grid_thw.values())))
            first[key] = (num_images, count)
            num_images += count
            kept.append(item)
        start, count = first[key]
        shown.extend(range(start, start + count))
    return kept, torch.tensor(shown) if len(kept) < len(seeing) else None


def _labels(items: Sequence[Item]) -> Tensor | None:
    if all(item.labels is None for item in items):
        return None
    rows = [np.full_like(i.input_ids, IGNORE_INDEX) if i.labels is None else i.labels for i in items]
    return torch.from_numpy(np.concatenate(rows))


def group_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Divide documents into batches of at most `budget` tokens, in order; a longer document gets a batch of its own.

    Args:
        lengths: tokens of each document.
        budget: tokens of a batch.

    Returns:
        Indices of the documents of each batch.
    """
    groups: list[list[int]] = []
    used = 0
    for index, length in enumerate(lengths):
        if not groups or used + length > budget:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += length
    return groups

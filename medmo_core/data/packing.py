"""Documents end to end in one batch, without padding, and what neighbours have in common only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ..batch import IGNORE_INDEX, Batch
from ..batch.coordinates import NO_COORDINATE
from ..batch.looks import Looks, join_looks
from .document import Document


@dataclass(frozen=True)
class PrefixTree:
    """Neighbouring items that are packed as one prompt and its branches, or one item by itself.

    Attributes:
        items: documents, in order.
        prefix: how many first tokens of all of them become the prompt; 0: there is one item and no prompt.
    """

    items: tuple[Document, ...]
    prefix: int

    @property
    def num_tokens(self) -> int:
        """Tokens that it takes in a batch."""
        return self.prefix + sum(len(item.input_ids) - self.prefix for item in self.items)


def prefix_trees(items: Sequence[Document]) -> list[PrefixTree]:
    """Find neighbours that can share their beginning.

    They hold the same arrays of patches, or no images and the same sample, and begin with the same tokens. What they
    share holds all of the images, ends before the first label, and leaves every item a token that it does not share.

    Args:
        items: documents, in the order in which they will be packed.

    Returns:
        All items, in order.
    """
    trees: list[PrefixTree] = []
    for _, group in groupby(items, key=_about):
        members = tuple(group)
        prefix = _common_prefix(members) if len(members) > 1 else 0
        trees += [PrefixTree(members, prefix)] if prefix else [PrefixTree((item,), 0) for item in members]
    return trees


def _about(item: Document) -> tuple[int, ...]:
    """Return what items about the same thing have in common: the arrays of patches, or without images the sample."""
    return tuple(id(rows) for rows in item.patches.values()) or (id(item.sample),)


def _common_prefix(items: Sequence[Document]) -> int:
    """Return how many first tokens the items can share; 0 where those would not hold all images."""
    first, *others = items
    length = min(_most_shared(item) for item in items)
    for other in others:
        same = first.input_ids[:length] == other.input_ids[:length]
        same &= (first.position_ids[:, :length] == other.position_ids[:, :length]).all(axis=0)
        length = length if same.all() else int(same.argmin())
    return length if length >= max(item.visual_end for item in items) else 0


def _most_shared(item: Document) -> int:
    """Return how many first tokens of an item a prompt may take: up to its first label, and never all."""
    learned = [] if item.labels is None else np.flatnonzero(item.labels != IGNORE_INDEX)
    return min([len(item.input_ids) - 1, *learned[:1]])


def pack(items: Sequence[Document], share_prefixes: bool = False) -> Batch:
    """Lay documents end to end.

    Args:
        items: at least one; documents without images may stand among documents with images. Items that hold the same
            arrays of patches show the same images, which enter the batch once.
        share_prefixes: lay out neighbours that can share their beginning (`prefix_trees`) as one prompt and its
            branches; loss and gradients are those of the items apart.

    Returns:
        The batch, its labels in the order of the items, whatever is shared. `labels` is None when no item has any; an
        item without labels among others is not learned. A prompt has the sample id and the task of its first item.

    Raises:
        ValueError: no item, or items made for different encoders.
    """
    if not items:
        raise ValueError("nothing to pack: expected at least one item")
    names = [tuple(item.patches) for item in items if item.patches]
    if len(set(names)) > 1:
        raise ValueError(f"items made for different encoders cannot share a batch: {sorted(set(names))}")
    documents, prompt_of = _documents(items, share_prefixes)
    lengths = np.cumsum([0, *(len(document.input_ids) for document in documents)])
    encoders = names[0] if names else ()
    seeing, image_index = _distinct([document for document in documents if document.patches])
    features = [item.features for item in seeing if item.features is not None]
    if len(features) < len(seeing):
        features = []  # the tower has to run anyway
    return Batch(
        input_ids=torch.from_numpy(np.concatenate([d.input_ids for d in documents])),
        labels=_labels(documents),
        position_ids=torch.from_numpy(np.concatenate([d.position_ids for d in documents], axis=1)),
        cu_seqlens=torch.from_numpy(lengths.astype(np.int32)),
        patches={}
        if features
        else {n: torch.from_numpy(np.concatenate([i.patches[n] for i in seeing])) for n in encoders},
        image_grid_thw={n: torch.from_numpy(np.concatenate([i.image_grid_thw[n] for i in seeing])) for n in encoders},
        image_index=image_index,
        sample_ids=tuple(document.sample.id for document in documents),
        prompt_of=prompt_of,
        tasks=tuple(document.sample.task for document in documents),
        features=torch.cat(features, dim=1) if features else None,
        looks=_looks(documents, prompt_of, lengths.tolist()),
        coordinates=_coordinates(documents),
    )


def _looks(documents: Sequence[Document], prompt_of: Tensor | None, starts: Sequence[int]) -> tuple[Looks, ...]:
    """Return the looks of every document, or of every prompt's branches together, positions counted in the batch."""
    prompts = [-1] * len(documents) if prompt_of is None else prompt_of.tolist()
    found: dict[int, list[Looks]] = {}
    for number, (document, prompt) in enumerate(zip(documents, prompts, strict=True)):
        if document.looks is not None:
            found.setdefault(number if prompt < 0 else prompt, []).append(document.looks.shift(starts[number]))
    return tuple(replace(join_looks(parts), start=starts[owner]) for owner, parts in found.items())


def _coordinates(documents: Sequence[Document]) -> Tensor | None:
    if all(document.coordinates is None for document in documents):
        return None
    codes = [np.full_like(d.input_ids, NO_COORDINATE) if d.coordinates is None else d.coordinates for d in documents]
    return torch.from_numpy(np.concatenate(codes))


def _documents(items: Sequence[Document], share_prefixes: bool) -> tuple[list[Document], Tensor | None]:
    """Return the documents of a batch, and for each its prompt, where any has one."""
    if not share_prefixes:
        return list(items), None
    documents: list[Document] = []
    prompt_of: list[int] = []
    for tree in prefix_trees(items):
        if not tree.prefix:
            documents += tree.items
            prompt_of.append(-1)
            continue
        prompt_of += [-1, *[len(documents)] * len(tree.items)]
        documents.append(replace(_cut(tree.items[0], slice(0, tree.prefix)), looks=None))
        documents += [
            replace(
                _cut(item, slice(tree.prefix, None)),
                patches={},
                image_grid_thw={},
                visual_end=0,
                features=None,
                looks=None if item.looks is None else item.looks.shift(-tree.prefix),
            )
            for item in tree.items
        ]
    return documents, torch.tensor(prompt_of) if max(prompt_of) >= 0 else None


def _cut(item: Document, tokens: slice) -> Document:
    labels = None if item.labels is None else item.labels[tokens]
    coordinates = None if item.coordinates is None else item.coordinates[tokens]
    cut = replace(item, input_ids=item.input_ids[tokens], labels=labels, position_ids=item.position_ids[:, tokens])
    return replace(cut, coordinates=coordinates)


def _distinct(seeing: Sequence[Document]) -> tuple[list[Document], Tensor | None]:
    """Return one item per set of images, and which of their images each document shows, where any is shown twice."""
    first: dict[tuple[int, ...], tuple[int, int]] = {}  # identity of the arrays -> their first image, and how many
    kept: list[Document] = []
    shown: list[int] = []
    num_images = 0
    for item in seeing:
        key = _about(item)
        if key not in first:
            count = len(next(iter(item.image_grid_thw.values())))
            first[key] = (num_images, count)
            num_images += count
            kept.append(item)
        start, count = first[key]
        shown.extend(range(start, start + count))
    return kept, torch.tensor(shown) if len(kept) < len(seeing) else None


def _labels(items: Sequence[Document]) -> Tensor | None:
    if all(item.labels is None for item in items):
        return None
    rows = [np.full_like(i.input_ids, IGNORE_INDEX) if i.labels is None else i.labels for i in items]
    return torch.from_numpy(np.concatenate(rows))

"""Boxes of many samples laid out as one ragged batch of matching problems."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..boxes import AnyBoxes, Boxes, ImageBoxes, by_image, corners_px
from .text import normalise


class BoxProblems(NamedTuple):
    """Arguments of `medmo_kernels.box_match` and `box_reward`, in pixels.

    Shapes: B samples, P predicted and T true boxes over all samples.
    """

    pred: Tensor
    truth: Tensor
    pred_offsets: Tensor
    truth_offsets: Tensor
    pred_labels: Tensor
    truth_labels: Tensor
    image_size: Tensor


def box_problems(pred: Sequence[AnyBoxes], truth: Sequence[AnyBoxes]) -> BoxProblems:
    """Lay predicted and true boxes out as one matching problem per sample.

    Boxes of different images never match. Labels compare after normalisation. Where the true boxes have no label, none
    is compared; a predicted box without label takes the label of the true ones where they have only one.

    Raises:
        ValueError: the lists differ in length, or an answer and its truth in the number of images.
    """
    if len(pred) != len(truth):
        raise ValueError(f"{len(pred)} predictions for {len(truth)} samples: give one per sample")
    pred_names: list[Hashable] = []
    truth_names: list[Hashable] = []
    pred_parts: list[Boxes] = []
    truth_parts: list[Boxes] = []
    sizes: list[tuple[int, int]] = []
    part_sizes: list[tuple[int, int]] = []
    for p, t in zip(pred, truth, strict=True):
        p_labels, t_labels = comparable_labels(p.labels, t.labels)
        pred_names += _within_images(p, p_labels)
        truth_names += _within_images(t, t_labels)
        p_parts, t_parts = by_image(p), by_image(t)
        if len(p_parts) != len(t_parts):
            raise ValueError("an answer has more or fewer images than its sample: parse it with the true boxes")
        pred_parts += p_parts
        truth_parts += t_parts
        # A sample's images are laid over its first one: that changes no overlap of boxes within an image.
        sizes.append(t_parts[0].size)
        part_sizes += sizes[-1:] * len(t_parts)
    ids: dict[Hashable, int] = defaultdict(count().__next__)
    return BoxProblems(
        pred=corners_px(pred_parts, part_sizes),
        truth=corners_px(truth_parts, part_sizes),
        pred_offsets=torch.tensor([0, *map(len, pred)]).cumsum(0),
        truth_offsets=torch.tensor([0, *map(len, truth)]).cumsum(0),
        pred_labels=_numbers(ids, pred_names),
        truth_labels=_numbers(ids, truth_names),
        image_size=torch.from_numpy(np.array(sizes, dtype=np.float64).reshape(-1, 2)),
    )


def _within_images(boxes: AnyBoxes, names: Sequence[str]) -> Sequence[Hashable]:
    """Return the names of boxes; where there are several images, each with the index of its image."""
    return list(zip(boxes.images, names, strict=True)) if isinstance(boxes, ImageBoxes) else names


def _numbers(ids: dict[Hashable, int], names: Sequence[Hashable]) -> Tensor:
    return torch.from_numpy(np.fromiter(map(ids.__getitem__, names), np.int64, len(names)))


def comparable_labels(pred: Sequence[str], truth: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the labels of one sample as they are compared; see `box_problems`."""
    truth_names, kinds = _names(tuple(truth))
    if not any(kinds):
        return [""] * len(pred), list(truth_names)
    if len(kinds) > 1:
        return list(map(_name, pred)), list(truth_names)
    return [_name(label) or truth_names[0] for label in pred], list(truth_names)


@lru_cache(maxsize=512)
def _name(label: str) -> str:
    """Normalise a label; few are remembered, as each may be as long as a text."""
    return normalise(label)


@lru_cache(maxsize=512)
def _names(labels: tuple[str, ...]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the normalised true labels of a sample, which all its completions share, and which there are."""
    names = tuple(map(normalise, labels))
    return names, frozenset(names)

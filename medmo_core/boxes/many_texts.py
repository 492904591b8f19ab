"""Boxes of many images at once: read out of many texts, and laid into one tensor.

Rewards see hundreds of texts a step, and a tensor operation per text would be most of their time: here each is done
once for all texts. What comes out is what `boxes.py` gives text by text and image by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .boxes import Boxes, checked_size, edges
from .recognise import PLAIN_GRAMMAR, plain_list
from .text import ParsedBoxes, parse_boxes

__all__ = ["corners_px", "parse_many"]


def parse_many(
    texts: Sequence[Any], sizes: Sequence[tuple[int, int]], grammar: str = "auto", frame: str = "norm1000"
) -> list[ParsedBoxes[Boxes]]:
    """Read the boxes out of many texts, as `parse_boxes` reads each.

    Faster where texts are lists as `print_boxes` writes them in `PLAIN_GRAMMAR`; the others go one by one.

    Args:
        texts: what a model wrote; anything that is not a string reads as an empty text.
        sizes: (width, height) px of the image (or canvas) that the numbers of each text refer to.
        grammar, frame: arguments of `parse_boxes`, the same for all texts.

    Raises:
        ValueError: as `parse_boxes`.
    """
    sizes = [checked_size(size) for size in sizes]
    takes_plain = grammar in ("auto", PLAIN_GRAMMAR)
    lists = [plain_list(text) if takes_plain else None for text in texts]
    counts = [0 if found is None else len(found[1]) for found in lists]
    numbers = ", ".join(found[0] for found in lists if found)
    whole = np.fromstring(numbers, np.int64, sep=",") if numbers else np.zeros(0)
    corners = torch.from_numpy(whole.astype(np.float64)).view(-1, 4)
    limits = _rows(torch.stack([edges(frame, size) for size in sizes]), counts) if sizes else corners
    ordered = (corners[:, :2] <= corners[:, 2:]).all(1)
    usable = ordered & (corners >= 0).all(1) & (corners <= limits).all(1)
    faulty = set(_rows(torch.arange(len(counts)), counts)[~usable].tolist())
    parts = corners.split(counts) if counts else ()
    return [
        parse_boxes(text, size, grammar, frame)
        if found is None or index in faulty
        else ParsedBoxes(Boxes.of_checked(part, frame, size, found[1]), True, PLAIN_GRAMMAR, ())
        for index, (text, size, found, part) in enumerate(zip(texts, sizes, lists, parts, strict=True))
    ]


def corners_px(boxes: Sequence[Boxes], sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return the corners of the boxes of many images, each image resized to its size, in pixels, as `resize` does.

    Shapes: (P, 4) float64, P boxes over all images.

    Args:
        boxes: one `Boxes` per image.
        sizes: (width, height) px of each image.
    """
    if not boxes:
        return torch.zeros(0, 4, dtype=torch.float64)
    counts = [len(b) for b in boxes]
    old = _rows(torch.stack([edges(b.frame, b.size) for b in boxes]), counts)
    new = _rows(torch.stack([edges("pixel", checked_size(size)) for size in sizes]), counts)
    corners = torch.cat([b.xyxy for b in boxes])
    return torch.where(old == new, corners, torch.minimum(corners * new / old, new))


def _rows(per_image: Tensor, counts: Sequence[int]) -> Tensor:
    """Repeat what belongs to each image for each of its boxes."""
    return per_image.repeat_interleave(torch.tensor(counts, dtype=torch.int64), 0)

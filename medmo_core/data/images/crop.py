"""Random crops of a sample: the picture's window moves, and its boxes move along.

They are what makes a small model look at the picture instead of remembering where organs usually are.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import torch

from ...boxes import Boxes
from ...errors import InputError
from ..records.sample import Message, Sample

MIN_VISIBLE = 0.3  # share of its area that a box must keep to stay
Window = tuple[int, int, int, int]


def crop_sample(sample: Sample, window: Window, *, image: int = 0, min_visible: float = MIN_VISIBLE) -> Sample:
    """Return the sample with a window of one image instead of the whole.

    Boxes are cut at the window's edges and dropped where too little of them is left; turns name those that stay by
    their new numbers, and the others no longer. Texts, answer and facts stay as they are: the caller knows whether
    they still hold.

    Units: pixels of the image as the sample shows it now (after a crop it may already have).

    Args:
        sample: a sample whose image size is known.
        window: (x0, y0, x1, y1); may reach beyond the image, what lies there is black. An image that is a crop
            already cannot be left: beyond it lies more of the stored picture, with structures that no box marks.
        image: index of the image.
        min_visible: share of its area that a box must keep.

    Raises:
        ValueError: an empty window, one that leaves a crop, or an image of unknown size.
    """
    reference = sample.images[image]
    if reference.size is None:
        raise InputError(f"{sample.id}: the size of {reference.path} must be known to crop it; state width and height")
    x0, y0, x1, y1 = window
    width, height = reference.size
    if reference.crop is not None and not (x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height):
        raise InputError(
            f"{sample.id}: window {list(window)} leaves the crop of {width}x{height} px that the sample shows; "
            "crop the whole picture instead"
        )
    inside = [i for i, box in enumerate(sample.boxes) if box.image == image]
    numbered = Boxes(
        torch.tensor([sample.boxes[i].xyxy_px for i in inside], dtype=torch.float64),
        "pixel",
        reference.size,
        tuple(str(i) for i in inside),  # which box is which survives the crop as its label
    ).crop(*window, min_visible=min_visible)
    corners = {int(n): tuple(row) for n, row in zip(numbered.labels, numbered.xyxy.tolist(), strict=True)}
    kept = [i for i, box in enumerate(sample.boxes) if box.image != image or i in corners]
    boxes = tuple(replace(sample.boxes[i], xyxy_px=corners.get(i, sample.boxes[i].xyxy_px)) for i in kept)
    numbers = {old: new for new, old in enumerate(kept)}
    messages = tuple(_renumbered(message, numbers) for message in sample.messages)
    left, top = (reference.crop or (0, 0, 0, 0))[:2]
    stored = (x0 + left, y0 + top, x1 + left, y1 + top)
    cropped = replace(reference, crop=stored, width=x1 - x0, height=y1 - y0)
    images = (*sample.images[:image], cropped, *sample.images[image + 1 :])
    return replace(sample, images=images, boxes=boxes, messages=messages)


def _renumbered(message: Message, numbers: Mapping[int, int]) -> Message:
    """Return a turn that names boxes by their new numbers."""
    if isinstance(message["content"], str):
        return message
    parts = [
        {**part, "boxes": [numbers[i] for i in part["boxes"] if i in numbers]} if part["type"] == "boxes" else part
        for part in message["content"]
    ]
    return {**message, "content": parts}


def random_square_window(
    size: tuple[int, int], rng: random.Random, lo: float = 0.55, hi: float = 1.1, overhang: float = 0.0
) -> Window:
    """Draw a square window, anywhere that lies inside the image or, where the window is larger, contains it.

    Units: pixels.

    Args:
        size: (width, height) of the image.
        rng: source of chance; three numbers are drawn.
        lo: smallest side, as a share of the image's shorter side.
        hi: largest; above 1 the window reaches beyond the image.
        overhang: share of the side by which the window may reach further out, on any edge.
    """
    width, height = size
    side = max(1, round(min(width, height) * rng.uniform(lo, hi)))
    x0, y0 = (_offset(length - side, round(overhang * side), rng) for length in (width, height))
    return x0, y0, x0 + side, y0 + side


def _offset(slack: int, overhang: int, rng: random.Random) -> int:
    """Draw a start between 0 and `slack`, whichever is larger, or up to `overhang` further out on both ends."""
    low, high = min(0, slack) - overhang, max(0, slack) + overhang
    return low + round(rng.random() * (high - low))


def random_square_crop(sample: Sample, rng: random.Random, lo: float = 0.55, hi: float = 1.1) -> Sample:
    """Return the sample with a random square window of its first image.

    Args:
        sample: its first image has a known size; without images the sample comes back as it is.
        rng: source of chance.
        lo: smallest side, as a share of the image's shorter side.
        hi: largest; above 1 the window reaches beyond the image, unless the sample shows a crop already.

    Raises:
        ValueError: an image of unknown size.
    """
    if not sample.images:
        return sample
    size = sample.images[0].size
    if size is None:
        raise InputError(f"{sample.id}: the size of {sample.images[0].path} must be known to crop it; state it")
    if sample.images[0].crop is not None:
        hi = min(hi, 1.0)
    return crop_sample(sample, random_square_window(size, rng, lo, hi))

"""Boxes of several images: one `Boxes` per image, so that no box loses its image and no image its size.

A text names the image of a box by its number, counted from 1 in the order of the prompt: JSON as a separate key
(`{"image": 2, "bbox_2d": [...], "label": "liver"}`), grammars whose label is a line of text before that label
(`Image 2: liver <box>[[...]]</box>`). Grammars without labels cannot name it and can point into one image only.

Shapes: N boxes over all images, in the order of the images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .boxes import Boxes
from .grammars import GRAMMARS, Row
from .objects import NAMED_FRAMES, shown
from .recognise import recognise
from .text import ParsedBoxes, named_grammar, usable_boxes, written_rows

__all__ = ["AnyBoxes", "ImageBoxes", "by_image", "no_boxes", "parse_image_boxes", "print_image_boxes", "resize_like"]

_NAMED_IMAGE = re.compile(r"image (\d{1,4})(?:\s*:\s*(.*))?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    """Boxes of a sample that shows several images.

    Args:
        per_image: the boxes of each image, in the order of the images; those without boxes are there too.
        default: index of the image that a box lies in whose text does not say.

    Raises:
        ValueError: no image, boxes in different frames, or a default that is no image.
    """

    per_image: tuple[Boxes, ...]
    default: int

    def __post_init__(self) -> None:
        frames = {boxes.frame for boxes in self.per_image}
        if len(frames) != 1:
            raise InputError(f"boxes of several images need one frame, found {', '.join(sorted(frames)) or 'no image'}")
        if not 0 <= self.default < len(self.per_image):
            raise InputError(f"default is {self.default}: expected an index below {len(self.per_image)} (the images)")

    def __len__(self) -> int:
        return sum(len(boxes) for boxes in self.per_image)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageBoxes):
            return NotImplemented
        return self.default == other.default and self.per_image == other.per_image

    __hash__ = None  # type: ignore[assignment]  # as of Boxes

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) px of each image."""
        return tuple(boxes.size for boxes in self.per_image)

    @property
    def labels(self) -> tuple[str, ...]:
        """N labels."""
        return tuple(label for boxes in self.per_image for label in boxes.labels)

    @property
    def images(self) -> tuple[int, ...]:
        """Index of the image of each of the N boxes."""
        return tuple(index for index, boxes in enumerate(self.per_image) for _ in range(len(boxes)))

    @property
    def xyxy(self) -> Tensor:
        """Corners (N, 4), each in the frame of its image."""
        return torch.cat([boxes.xyxy for boxes in self.per_image])

    def with_labels(self, labels: Sequence[str]) -> ImageBoxes:
        """Return the same boxes under N other labels."""
        if len(labels) != len(self):
            raise InputError(f"{len(self)} boxes but {len(labels)} labels: give one label per box")
        rest = iter(labels)
        parts = (boxes.with_labels([next(rest) for _ in range(len(boxes))]) for boxes in self.per_image)
        return replace(self, per_image=tuple(parts))

    def resize(self, sizes: Sequence[tuple[int, int]]) -> ImageBoxes:
        """Return the boxes on their images resized to `sizes` (width, height), in pixels."""
        pairs = zip(self.per_image, sizes, strict=True)
        return replace(self, per_image=tuple(boxes.resize(size) for boxes, size in pairs))


AnyBoxes = Boxes | ImageBoxes
"""What a sample's boxes are: of one image, or of several."""


def by_image(boxes: AnyBoxes) -> tuple[Boxes, ...]:
    """Return the boxes of each image of the sample."""
    return boxes.per_image if isinstance(boxes, ImageBoxes) else (boxes,)


def no_boxes(where: AnyBoxes) -> AnyBoxes:
    """Return no boxes of the images of `where`."""
    if isinstance(where, Boxes):
        return Boxes.empty(where.size)
    return replace(where, per_image=tuple(Boxes.empty(size) for size in where.sizes))


def resize_like(boxes: AnyBoxes, where: AnyBoxes) -> AnyBoxes:
    """Return boxes on their images resized to those of `where`, in pixels.

    Raises:
        ValueError: the two speak of different numbers of images.
    """
    parts, targets = by_image(boxes), by_image(where)
    if len(parts) != len(targets):
        raise InputError(f"boxes of {len(parts)} image(s) for a sample of {len(targets)}")
    resized = tuple(part.resize(target.size) for part, target in zip(parts, targets, strict=True))
    return replace(boxes, per_image=resized) if isinstance(boxes, ImageBoxes) else resized[0]


def print_image_boxes(
    boxes: ImageBoxes, grammar: str = "qwen3_vl_json", frame: str | None = None, step: int = 1
) -> str:
    """Write boxes of several images as the text a model is to say, each with the number of its image.

    Args:
        boxes: boxes and labels; written image by image.
        grammar, frame, step: arguments of `print_boxes`; numbers refer to the image of their box.

    Raises:
        ValueError: as `print_boxes`, or the grammar cannot name images and boxes lie in others than the default one.
    """
    chosen = named_grammar(grammar)
    rows: list[Row] = [row for part in boxes.per_image for row in written_rows(part, chosen, frame, step)]
    written_frame = frame or chosen.frame
    numbers = [index + 1 for index in boxes.images]
    if chosen.image_place == "key":
        return chosen.print(rows, written_frame, numbers)
    if chosen.image_place == "label":
        names = [f"Image {n}: {label}" if label else f"Image {n}" for n, (label, _) in zip(numbers, rows, strict=True)]
        return chosen.print([(name, row) for name, (_, row) in zip(names, rows, strict=True)], written_frame)
    elsewhere = sorted(set(numbers) - {boxes.default + 1})
    if elsewhere:
        raise InputError(
            f"grammar {grammar!r} cannot say that a box lies in image {elsewhere[0]}: without a number it is read in "
            f"image {boxes.default + 1}; use one of {', '.join(_naming_grammars())}"
        )
    return chosen.print(rows, written_frame)


def _naming_grammars() -> list[str]:
    return [name for name, grammar in GRAMMARS.items() if grammar.image_place]


def parse_image_boxes(
    text: Any, sizes: Sequence[tuple[int, int]], grammar: str = "auto", frame: str = "norm1000", *, default: int
) -> ParsedBoxes[ImageBoxes]:
    """Read the boxes of several images out of a text; never raises on any text.

    Args:
        text: text that a model wrote; anything that is not a string reads as an empty text.
        sizes: (width, height) px of each image that the numbers may refer to.
        grammar, frame: arguments of `parse_boxes`.
        default: index of the image of a box whose text does not say.

    Returns:
        As `parse_boxes`; a box whose image does not exist is dropped and clears `ok`.

    Raises:
        ValueError: only for wrong sizes, grammar, frame or default, never because of `text`.
    """
    if grammar != "auto":
        named_grammar(grammar)
    sizes = ImageBoxes(tuple(Boxes.empty(size, frame) for size in sizes), default).sizes  # checks them all
    found = recognise(text if isinstance(text, str) else "", grammar)
    frame = NAMED_FRAMES.get(found.named_frame or "", frame)
    before_labels = found.grammar is not None and GRAMMARS[found.grammar].image_place == "label"
    rows: list[list[Row]] = [[] for _ in sizes]
    errors = list(found.errors)
    for index, (label, corners) in enumerate(found.rows):
        number = found.images.get(index, default + 1)
        named = _NAMED_IMAGE.fullmatch(label) if before_labels else None
        if named:
            number, label = int(named.group(1)), named.group(2) or ""
        if type(number) is int and 1 <= number <= len(sizes):
            rows[number - 1].append((label, corners))
        else:
            errors.append(
                f"box {index} ({shown(label, 'no label')}): image is {shown(repr(number))}, expected 1 to {len(sizes)}"
            )
    per_image: list[Boxes] = []
    for number, (part, size) in enumerate(zip(rows, sizes, strict=True), start=1):
        boxes, faults = usable_boxes(replace(found, rows=part, errors=[]), frame, size)
        per_image.append(boxes)
        errors += [f"image {number}: {fault}" for fault in faults]
    boxes = ImageBoxes(tuple(per_image), default)
    return ParsedBoxes(boxes, found.grammar is not None and not errors, found.grammar, tuple(errors))

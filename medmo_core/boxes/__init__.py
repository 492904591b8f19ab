"""Boxes: typed corners with their frame and image size, the grammars models write them in, and their text."""

from .boxes import FRAMES, Boxes, unit_mistake
from .grammars import GRAMMARS, Grammar
from .image_boxes import (
    AnyBoxes,
    ImageBoxes,
    by_image,
    no_boxes,
    parse_image_boxes,
    print_image_boxes,
    resize_like,
)
from .many_texts import corners_px, parse_many
from .text import ParsedBoxes, parse_boxes, print_boxes, under_step

__all__ = [
    "FRAMES",
    "GRAMMARS",
    "AnyBoxes",
    "Boxes",
    "Grammar",
    "ImageBoxes",
    "ParsedBoxes",
    "by_image",
    "corners_px",
    "no_boxes",
    "parse_boxes",
    "parse_image_boxes",
    "parse_many",
    "print_boxes",
    "print_image_boxes",
    "resize_like",
    "under_step",
    "unit_mistake",
]

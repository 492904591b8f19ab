"""Draw boxes over a picture for people to look at: true ones, predicted ones, their labels and the patient's sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ...boxes import Boxes
from ...errors import InputError
from ...notice import PICTURE_NOTICE
from .geometry import Geometry

TRUE_COLOUR = (64, 220, 120)
PREDICTED_COLOUR = (255, 150, 40)
PAPER, INK = (16, 18, 22), (235, 235, 235)
LINE_HEIGHT = 18


def overlay_boxes(
    pixels: NDArray[np.uint8],
    predicted: Boxes | None = None,
    truth: Boxes | None = None,
    *,
    title: str = "",
    geometry: Geometry | None = None,
    min_side: int = 384,
    least_height: int = 0,
) -> Image.Image:
    """Return the picture with its boxes, a legend and the words "research use only".

    True boxes are solid green, predicted ones dashed orange, so that they stay apart in print too.

    Shapes: pixels (H, W, 3) uint8.

    Args:
        pixels: the picture.
        predicted: what a model said; None draws none.
        truth: what is annotated; None draws none.
        title: one line above the picture; it is cut to fit.
        geometry: the picture's place in the patient; puts the patient's sides on the picture's edges.
        min_side: smaller pictures are enlarged until their short side has about this many pixels.
        least_height: height in px of a lower sheet, which gets empty space between its picture and its legend.

    Raises:
        ValueError: boxes of an image of another size.
    """
    height, width = pixels.shape[:2]
    for boxes in (predicted, truth):
        if boxes is not None and boxes.size != (width, height):
            raise InputError(
                f"boxes of a {boxes.size[0]}x{boxes.size[1]} image cannot be drawn on one of {width}x{height}: "
                "resize them first"
            )
    scale = max(1, round(min_side / min(width, height)))
    shown = (width * scale, height * scale)
    picture = Image.fromarray(pixels).resize(shown, Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    if truth is not None:
        _paint_boxes(draw, truth.resize(shown), TRUE_COLOUR, dashed=False, label_above=True)
    if predicted is not None:
        _paint_boxes(draw, predicted.resize(shown), PREDICTED_COLOUR, dashed=True, label_above=False)
    if geometry is not None:
        _paint_sides(draw, shown, geometry)
    return _framed(picture, title, predicted, truth, least_height)


def beside(overlays: Sequence[Callable[..., Image.Image]]) -> Image.Image:
    """Return overlays beside one another on one sheet, their legends and footers on one line.

    Args:
        overlays: calls of `overlay_boxes` that lack nothing but a `least_height`.
    """
    pictures = [draw() for draw in overlays]
    height = max(picture.height for picture in pictures)
    pictures = [
        picture if picture.height == height else draw(least_height=height)
        for draw, picture in zip(overlays, pictures, strict=True)
    ]
    width = sum(picture.width for picture in pictures)
    sheet = Image.new("RGB", (width, height), PAPER)
    x = 0
    for picture in pictures:
        sheet.paste(picture, (x, 0))
        x += picture.width
    return sheet


def _font(size: int = 13) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _paint_boxes(
    draw: ImageDraw.ImageDraw, boxes: Boxes, colour: tuple[int, int, int], *, dashed: bool, label_above: bool
) -> None:
    for (x1, y1, x2, y2), label in zip(boxes.xyxy.tolist(), boxes.labels, strict=True):
        right, bottom = max(x1, x2 - 1), max(y1, y2 - 1)  # half-open edges: the last covered pixel
        if dashed:
            for start, end in (
                ((x1, y1), (right, y1)),
                ((right, y1), (right, bottom)),
                ((right, bottom), (x1, bottom)),
                ((x1, bottom), (x1, y1)),
            ):
                _dashed_line(draw, start, end, colour)
        else:
            draw.rectangle((x1, y1, right, bottom), outline=colour, width=2)
        if label:
            _paint_label(draw, (x1, y1 - LINE_HEIGHT if label_above else bottom + 2), label, colour, boxes.size)


def _dashed_line(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: tuple[int, int, int],
    dash: float = 6.0,
) -> None:
    length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    direction = (np.subtract(end, start) / length) if length else np.zeros(2)
    for offset in np.arange(0.0, max(length, 1.0), 2 * dash):
        a = np.add(start, direction * offset)
        b = np.add(start, direction * min(offset + dash, length))
        draw.line((float(a[0]), float(a[1]), float(b[0]), float(b[1])), fill=colour, width=2)


def _paint_label(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    label: str,
    colour: tuple[int, int, int],
    size: tuple[int, int],
) -> None:
    text = _printable(label)[:60]
    width = draw.textlength(text, font=_font()) + 4
    x = min(max(corner[0], 0.0), max(0.0, size[0] - width))
    y = min(max(corner[1], 0.0), max(0.0, size[1] - LINE_HEIGHT))
    draw.rectangle((x, y, x + width, y + LINE_HEIGHT - 2), fill=(0, 0, 0))
    draw.text((x + 2, y), text, fill=colour, font=_font())


def _paint_sides(draw: ImageDraw.ImageDraw, size: tuple[int, int], geometry: Geometry) -> None:
    width, height = size
    places = {
        "left": (4, height // 2),
        "right": (width - 14, height // 2),
        "top": (width // 2, 2),
        "bottom": (width // 2, height - 18),
    }
    for edge, place in places.items():
        draw.text(place, geometry.edges[edge], fill=INK, font=_font(14), stroke_width=2, stroke_fill=(0, 0, 0))


def _framed(
    picture: Image.Image, title: str, predicted: Boxes | None, truth: Boxes | None, least_height: int
) -> Image.Image:
    """Add the title above and the legend and footer below."""
    legend = []
    if truth is not None:
        legend.append((f"true ({len(truth)})", TRUE_COLOUR))
    if predicted is not None:
        legend.append((f"predicted ({len(predicted)}, dashed)", PREDICTED_COLOUR))
    top = LINE_HEIGHT + 4 if title else 0
    bottom = LINE_HEIGHT * (2 if legend else 1) + 6
    width = max(picture.width, 280)
    sheet = Image.new("RGB", (width, max(least_height, picture.height + top + bottom)), PAPER)
    sheet.paste(picture, ((width - picture.width) // 2, top))
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((4, 3), _fitting(draw, _printable(title), width - 8), fill=INK, font=_font())
    x, y = 4.0, float(sheet.height - bottom + 3)
    for text, colour in legend:
        draw.text((x, y), text, fill=colour, font=_font())
        x += draw.textlength(text, font=_font()) + 14
    draw.text((4, sheet.height - LINE_HEIGHT - 1), PICTURE_NOTICE, fill=INK, font=_font())
    return sheet


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: float) -> str:
    while text and draw.textlength(text, font=_font()) > width:
        text = text[:-2] + "\u2026" if len(text) > 2 else ""
    return text


def _printable(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())

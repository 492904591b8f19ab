"""Boxes: coordinates that never travel without their frame and the size of their image.

Three frames: `pixel` (0..width, 0..height), `norm1000` (0..1000 on both axes) and `unit` (0..1 on both axes). Corners
are half-open pixel edges: the box [3, 5, 4, 6] covers exactly pixel column 3 of row 5, and the whole image is
[0, 0, width, height]. No other file multiplies a coordinate by an image size.

Shapes: N boxes, xyxy = x1, y1, x2, y2 with x to the right and y down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError

FRAMES = ("pixel", "norm1000", "unit")
EDGE_TOLERANCE = 1e-6  # share of the image side that rounding may add outside the image; clamped away


class PatientMap(Protocol):
    """The part of a geometry that `to_patient` needs: the size it holds for and the map itself."""

    @property
    def size(self) -> tuple[int, int]: ...

    def to_patient(self, points_px: Tensor) -> Tensor: ...


def frame_limits(frame: str, size: tuple[int, int]) -> tuple[float, float]:
    """Return the largest x and y of a frame for an image of `size` (width, height) px."""
    if frame == "pixel":
        return float(size[0]), float(size[1])
    if frame == "norm1000":
        return 1000.0, 1000.0
    if frame == "unit":
        return 1.0, 1.0
    raise InputError(f"unknown box frame {frame!r}: use one of {', '.join(FRAMES)}")


@lru_cache(maxsize=256)
def edges(frame: str, size: tuple[int, int]) -> Tensor:
    """Return `frame_limits` of x, y, x, y; shared by all callers, so never to be written to."""
    return torch.tensor(frame_limits(frame, size) * 2, dtype=torch.float64)


def checked_size(size: Sequence[int]) -> tuple[int, int]:
    """Return an image size as two whole numbers.

    Raises:
        ValueError: it is none.
    """
    return _whole_pixels(tuple(size))


@lru_cache(maxsize=256)
def _whole_pixels(values: tuple[int, ...]) -> tuple[int, int]:
    whole = len(values) == 2 and all(math.isfinite(v) and v > 0 and v == int(v) for v in values)
    if not whole:
        raise InputError(f"image size {values} must be (width, height), two positive whole numbers of pixels")
    return int(values[0]), int(values[1])


@dataclass(frozen=True, eq=False)
class Boxes:
    """N boxes of one image.

    Shapes: xyxy (N, 4) float64 (a nested list is accepted and converted).
    Units: those of `frame`; `size` in pixels.

    Args:
        xyxy: corners x1, y1, x2, y2 with x1 <= x2 and y1 <= y2.
        frame: `pixel`, `norm1000` or `unit`.
        size: (width, height) of the image the boxes lie in.
        labels: one text per box; none at all means N empty labels.

    Raises:
        ValueError: a box with NaN, reversed corners or a corner outside its image, naming the box and the fix.
    """

    xyxy: Tensor
    frame: str
    size: tuple[int, int]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        size = checked_size(self.size)
        xyxy = torch.as_tensor(self.xyxy, dtype=torch.float64)
        if xyxy.numel() == 0:
            xyxy = xyxy.reshape(0, 4)
        if xyxy.ndim != 2 or xyxy.shape[1] != 4:
            raise InputError(f"boxes have shape {tuple(xyxy.shape)}, expected (N, 4): one row x1, y1, x2, y2 per box")
        labels = tuple(self.labels) or ("",) * len(xyxy)
        if len(labels) != len(xyxy):
            raise InputError(f"{len(xyxy)} boxes but {len(labels)} labels: give one label per box, or none at all")
        limit_x, limit_y = frame_limits(self.frame, size)
        for index, (x1, y1, x2, y2) in enumerate(xyxy.tolist()):
            if 0 <= x1 <= x2 <= limit_x and 0 <= y1 <= y2 <= limit_y:
                continue
            fault = box_fault((x1, y1, x2, y2), self.frame, size)
            if fault:
                raise InputError(f"box {index} ({labels[index] or 'no label'}) {fault}")
        limits = edges(self.frame, size).to(xyxy.device)
        object.__setattr__(self, "xyxy", torch.minimum(xyxy.clamp(min=0.0), limits))
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "labels", labels)

    @classmethod
    def of_checked(cls, xyxy: Tensor, frame: str, size: tuple[int, int], labels: tuple[str, ...]) -> Boxes:
        """Return boxes of corners that are known to lie inside the image, without checking them again."""
        boxes = object.__new__(cls)
        boxes.__dict__.update(xyxy=xyxy, frame=frame, size=size, labels=labels)
        return boxes

    @classmethod
    def empty(cls, size: tuple[int, int], frame: str = "pixel") -> Boxes:
        """Return no boxes of an image of `size` (width, height) px."""
        return cls(torch.zeros(0, 4, dtype=torch.float64), frame, size)

    def __len__(self) -> int:
        return len(self.labels)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Boxes):
            return NotImplemented
        same_kind = (self.frame, self.size, self.labels) == (other.frame, other.size, other.labels)
        return same_kind and torch.equal(self.xyxy, other.xyxy)

    __hash__ = None  # type: ignore[assignment]  # tensors compare by value but hash by identity

    def select(self, indices: Iterable[int]) -> Boxes:
        """Return the boxes at `indices`, in that order."""
        chosen = list(indices)
        return Boxes(self.xyxy[chosen], self.frame, self.size, tuple(self.labels[i] for i in chosen))

    def with_labels(self, labels: Sequence[str]) -> Boxes:
        """Return the same boxes under other labels."""
        return Boxes(self.xyxy, self.frame, self.size, tuple(labels))

    def to(self, frame: str, size: tuple[int, int] | None = None) -> Boxes:
        """Return the same boxes in another frame, and, when `size` is given, on the image resized to it.

        Args:
            frame: `pixel`, `norm1000` or `unit`.
            size: (width, height) px of the resized image; None: the size the boxes already have.
        """
        new_size = self.size if size is None else checked_size(size)
        if (frame, new_size) == (self.frame, self.size):
            return self
        old, new = (edges(*ends).to(self.xyxy.device) for ends in ((self.frame, self.size), (frame, new_size)))
        # Only rounding can carry a corner past the edge.
        return Boxes.of_checked(torch.minimum(self.xyxy * new / old, new), frame, new_size, self.labels)

    def pixel(self) -> Boxes:
        """Return the same boxes in pixels of their image."""
        return self.to("pixel")

    def resize(self, size: tuple[int, int]) -> Boxes:
        """Return the boxes on their image resized to `size` (width, height), in pixels."""
        return self.to("pixel", size)

    def area(self) -> Tensor:
        """Return the areas (N,) in square pixels."""
        x1, y1, x2, y2 = self.pixel().xyxy.unbind(1)
        return (x2 - x1) * (y2 - y1)

    def visible_in(self, x0: float, y0: float, x1: float, y1: float) -> Tensor:
        """Return which share (N,) of each box lies in a window given in pixels; a box without area counts 0 or 1."""
        window = self.xyxy.new_tensor([x0, y0, x1, y1])
        corners = self.pixel().xyxy
        low = torch.maximum(corners[:, :2], window[:2])
        high = torch.minimum(corners[:, 2:], window[2:])
        sides = high - low
        area = self.area()
        touches = (sides >= 0).all(1).to(area.dtype)
        return torch.where(area > 0, sides.clamp(min=0).prod(1) / area.clamp(min=1e-300), touches)

    def crop(self, x0: int, y0: int, x1: int, y1: int, min_visible: float = 0.3) -> Boxes:
        """Return the boxes seen in a window, in pixels of the window; the rest are dropped.

        The window may reach beyond the image (the picture is then padded).

        Args:
            x0, y0, x1, y1: left, top, right and bottom edge of the window in pixels of the image.
            min_visible: share of its area that a box must keep; what is cut off is lost.

        Raises:
            ValueError: the window is empty or not on whole pixels.
        """
        if not (x0 < x1 and y0 < y1):
            raise InputError(f"crop window [{x0}, {y0}, {x1}, {y1}] is empty: it needs x0 < x1 and y0 < y1")
        size = checked_size((x1 - x0, y1 - y0))
        share = self.visible_in(x0, y0, x1, y1)
        kept = [i for i, s in enumerate(share.tolist()) if s > 0 and s >= min_visible]
        shift = self.xyxy.new_tensor([x0, y0, x0, y0])
        moved = self.pixel().xyxy[kept] - shift
        limits = self.xyxy.new_tensor([*size, *size])
        return Boxes(torch.minimum(moved.clamp(min=0.0), limits), "pixel", size, tuple(self.labels[i] for i in kept))

    def to_patient(self, geometry: PatientMap) -> Tensor:
        """Return the corners of each box in the patient's space.

        Shapes: (N, 4, 3): top left, top right, bottom right, bottom left; each x, y, z.
        Units: millimetres, DICOM patient axes (x to the patient's left, y to the back, z to the head).

        Raises:
            ValueError: the geometry belongs to a picture of another size.
        """
        if tuple(geometry.size) != self.size:
            raise InputError(
                f"boxes of a {self.size[0]}x{self.size[1]} image cannot use the geometry of a "
                f"{geometry.size[0]}x{geometry.size[1]} one: resize or crop the geometry (or the boxes) to match first"
            )
        x1, y1, x2, y2 = self.pixel().xyxy.unbind(1)
        corners = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], dim=1)
        return geometry.to_patient(corners.reshape(-1, 4, 2))


def box_fault(row: Sequence[float], frame: str, size: tuple[int, int]) -> str | None:
    """Say what is wrong with one box, and how to fix it; None when nothing is."""
    limit_x, limit_y = frame_limits(frame, size)
    shown = "[" + ", ".join(f"{v:g}" for v in row) + "]"
    if not all(math.isfinite(v) for v in row):
        return f"is {shown}: a coordinate is not a finite number; drop the box or fix its source"
    x1, y1, x2, y2 = row
    if x1 > x2 or y1 > y2:
        ordered = [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
        return (
            f"is {shown}: its corners are reversed; write [" + ", ".join(f"{v:g}" for v in ordered) + "] "
            "(x1 <= x2, y1 <= y2; a box given as x, y, width, height needs x2 = x + width, y2 = y + height)"
        )
    slack_x, slack_y = EDGE_TOLERANCE * limit_x, EDGE_TOLERANCE * limit_y
    if x1 < -slack_x or y1 < -slack_y or x2 > limit_x + slack_x or y2 > limit_y + slack_y:
        return (
            f"is {shown}: outside its image of {size[0]}x{size[1]} px (frame {frame!r} ends at "
            f"[{limit_x:g}, {limit_y:g}]); clip it, or check the frame and the image size"
        )
    return None


def unit_mistake(row: Sequence[float], frame: str, size: tuple[int, int]) -> str | None:
    """Say that a box is written in fractions of the image although its frame has other units; None where it is not.

    All four numbers lie between -1 and 1 and one is no whole number: read as thousandths or pixels, such a box would
    be a speck in the corner. `[0, 0, 1, 1]` is whole and stays one pixel.

    Args:
        row: corners x1, y1, x2, y2 as they were written.
        frame: frame they are read in.
        size: (width, height) px of the image.
    """
    if frame == "unit" or max(frame_limits(frame, size)) <= 1:
        return None
    if all(-1 <= v <= 1 for v in row) and any(v != int(v) for v in row):
        shown = "[" + ", ".join(f"{v:g}" for v in row) + "]"
        unit = "pixels" if frame == "pixel" else "thousandths of the image side"
        return f"is {shown}: fractions of the image side where {unit} are expected; multiply it out, or state the frame"
    return None

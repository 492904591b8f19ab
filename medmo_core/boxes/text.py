"""Boxes as text: printed in a grammar, parsed from what a model wrote."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from ..errors import InputError
from .boxes import EDGE_TOLERANCE, Boxes, box_fault, checked_size, frame_limits, unit_mistake
from .grammars import GRAMMARS, Grammar, Row
from .objects import NAMED_FRAMES, Recognised, shown
from .recognise import recognise

B_co = TypeVar("B_co", covariant=True)
_UNIT_PARTS = 10_000  # fractions are written to four decimals


@dataclass(frozen=True)
class ParsedBoxes(Generic[B_co]):
    """Boxes read from a text, and what is wrong with it.

    Attributes:
        boxes: the usable boxes, in the frame the text was read in: `Boxes`, or `ImageBoxes` of several images.
        ok: the text follows a grammar and every box in it could be used as written. An explicit "no box" is ok.
        grammar: the grammar that was recognised, or None.
        errors: what was wrong, in words; a box that only had to be clipped is kept and named here.
    """

    boxes: B_co
    ok: bool
    grammar: str | None
    errors: tuple[str, ...]


def named_grammar(name: str) -> Grammar:
    """Return the grammar of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in GRAMMARS:
        raise InputError(f"unknown box grammar {name!r}: use one of {', '.join(GRAMMARS)}, or 'auto' to parse")
    return GRAMMARS[name]


def print_boxes(boxes: Boxes, grammar: str = "qwen3_vl_json", frame: str | None = None, step: int = 1) -> str:
    """Write boxes as the text a model is to say.

    Args:
        boxes: the boxes and their labels.
        grammar: key of `GRAMMARS`.
        frame: frame of the written numbers; None: the grammar's own (`norm1000` for most). `norm1000` and `pixel` are
            rounded to integers inside the image, `unit` to four decimals.
        step: integers are rounded to multiples of it; frame `unit` takes 1 only. A side that is shorter than a step
            is written as one step, around its middle: a box without area could not be scored.

    Raises:
        ValueError: the grammar is unknown or cannot say the labels (see `Grammar.labels`), or `step` does not fit.
    """
    chosen = named_grammar(grammar)
    return chosen.print(written_rows(boxes, chosen, frame, step), frame or chosen.frame)


def written_rows(boxes: Boxes, chosen: Grammar, frame: str | None, step: int) -> list[Row]:
    """Return the labels and numbers that `print_boxes` writes; arguments and faults are its own."""
    target, grid = _grid(boxes, chosen, frame, step)
    rows: list[Row] = []
    for index, (label, (x1, y1, x2, y2)) in enumerate(zip(target.labels, target.xyxy.tolist(), strict=True)):
        fault = chosen.label_fault(label)
        if fault:
            raise InputError(f"box {index}: {fault}")
        left, right = grid.side(x1, x2, grid.limits[0])
        top, bottom = grid.side(y1, y2, grid.limits[1])
        rows.append((label, (left, top, right, bottom)))
    return rows


def under_step(boxes: Boxes, grammar: str = "qwen3_vl_json", frame: str | None = None, step: int = 1) -> list[int]:
    """Return the indices of boxes that are narrower or lower than one step of what is written.

    `print_boxes` makes such a side a step long, so the text no longer says how large the box is.

    Args:
        boxes: boxes of one image.
        grammar, frame, step: arguments of `print_boxes`.

    Raises:
        ValueError: as `print_boxes`.
    """
    target, grid = _grid(boxes, named_grammar(grammar), frame, step)
    sides = (target.xyxy[:, 2:] - target.xyxy[:, :2]) * grid.scale
    return (sides < grid.step - EDGE_TOLERANCE).any(1).nonzero().flatten().tolist()


class _Grid(NamedTuple):
    """Numbers that can be written: multiples of `step` and the frame's end, of coordinates times `scale`."""

    scale: float
    step: int
    limits: tuple[int, int]
    written: float  # what is written is a number of the grid divided by it

    def side(self, low: float, high: float, limit: int) -> tuple[float, float]:
        """Return the ends of a side as written: rounded, inside the frame, a step apart where the frame allows it."""
        low, high = low * self.scale, high * self.scale
        first, last = round(low / self.step) * self.step, round(high / self.step) * self.step
        if last - first < self.step:  # the step that the middle of the side lies in
            first = math.floor((low + high) / 2 / self.step) * self.step
            last = first + self.step
        last = min(last, limit)
        if last - first < self.step:
            first = max(0, (last - self.step) // self.step * self.step)
        return (first, last) if self.written == 1 else (first / self.written, last / self.written)


def _grid(boxes: Boxes, chosen: Grammar, frame: str | None, step: int) -> tuple[Boxes, _Grid]:
    """Return boxes in the frame they are written in, and the grid of what is written there."""
    target = boxes.to(frame or chosen.frame)
    if chosen.bins != 1000 and target.frame != "norm1000":
        raise InputError(f"grammar {chosen.name!r} writes bins of the image side: print it in frame 'norm1000'")
    if step < 1 or (step > 1 and target.frame == "unit"):
        raise InputError(f"step is {step}, expected a whole number above 0, and 1 in frame 'unit'")
    written = _UNIT_PARTS if target.frame == "unit" else 1
    scale = written * chosen.bins / 1000
    width, height = (round(limit * scale) for limit in frame_limits(target.frame, boxes.size))
    return target, _Grid(scale, step, (width, height), written)


def parse_boxes(text: Any, size: tuple[int, int], grammar: str = "auto", frame: str = "norm1000") -> ParsedBoxes[Boxes]:
    """Read the boxes out of a text; never raises on any text.

    Args:
        text: what a model wrote. Anything that is not a string reads as an empty text.
        size: (width, height) px of the image (or canvas) the numbers refer to.
        grammar: key of `GRAMMARS`, or `auto` to recognise it.
        frame: frame of the numbers in the text, unless the text itself names one (`"box_format": "pixel"`).

    Returns:
        The boxes in the frame of the text, with what went wrong. Reversed, non-finite and wholly outside boxes
        and fractions where the frame has none (`unit_mistake`) are dropped, partly outside ones clipped; both clear
        `ok`.

    Raises:
        ValueError: only for a wrong `size`, `grammar` or `frame`, never because of `text`.
    """
    size = checked_size(size)
    frame_limits(frame, size)
    if grammar != "auto":
        named_grammar(grammar)
    found = recognise(text if isinstance(text, str) else "", grammar)
    frame = NAMED_FRAMES.get(found.named_frame or "", frame)
    boxes, errors = usable_boxes(found, frame, size)
    return ParsedBoxes(boxes, found.grammar is not None and not errors, found.grammar, tuple(errors))


def usable_boxes(found: Recognised, frame: str, size: tuple[int, int]) -> tuple[Boxes, list[str]]:
    """Return the boxes that can be used, as `parse_boxes` says, and what was wrong, in words."""
    rows, labels, errors = _usable(found, frame, size)
    # frombuffer reads a flat array several times faster than torch.tensor reads lists, but takes no empty one.
    flat = array("d", list(chain.from_iterable(rows)))
    corners = torch.frombuffer(flat, dtype=torch.float64) if rows else torch.zeros(0, dtype=torch.float64)
    return Boxes.of_checked(corners.view(-1, 4), frame, size, tuple(labels)), errors


def _usable(found: Recognised, frame: str, size: tuple[int, int]) -> tuple[list[Sequence[float]], list[str], list[str]]:
    """Sort what was found into rows inside the image, labels and errors."""
    limit_x, limit_y = frame_limits(frame, size)
    rows: list[Sequence[float]] = []
    labels: list[str] = []
    errors = list(found.errors)
    for index, (label, row) in enumerate(found.rows):
        x1, y1, x2, y2 = row
        mistake = unit_mistake(row, frame, size) if x2 <= 1 else None
        if mistake:
            errors.append(f"box {index} ({shown(label, 'no label')}) {mistake}")
            continue
        if not (0 <= x1 <= x2 <= limit_x and 0 <= y1 <= y2 <= limit_y):
            fault = box_fault(row, frame, size)
            clipped = [min(max(v, 0.0), limit) for v, limit in zip(row, (limit_x, limit_y) * 2, strict=True)]
            if fault:
                errors.append(f"box {index} ({shown(label, 'no label')}) {fault}")
                ordered = all(math.isfinite(v) for v in row) and x1 <= x2 and y1 <= y2
                if not ordered or clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
                    continue
            row = clipped
        rows.append(row)
        labels.append(label)
    return rows, labels, errors

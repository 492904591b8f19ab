"""The facts table of each embedded image, and what of it a window of the image still shows.

Every text of the embedded set is written from a `View`, so an answer can always be checked against the masks.

Units: pixels of the stored image as half-open edges; mm, mm2 and ml of the patient. Left and right in names are the
patient's; volumes are shown with the patient's left on image right.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EMBEDDED_ROOT = Path(__file__).parent / "files"
MIN_AREA_PX = 16
MIN_SHARE = 0.3  # of a structure's area that a window must show for it to count as visible
MIN_SIDE_RATIO = 0.03  # of the window's side; a thinner box cannot be distinguished from its neighbours

Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Structure:
    """One structure of one image.

    Attributes:
        name: human words; the patient's side is part of the name (`left kidney`).
        xyxy_px: its box.
        origin: silver (predicted by a model), expert (drawn), derived (computed) or curated (set by hand for this set).
        side: the patient's side it lies on, where that is known.
        area_mm2: area in this image.
        volume_ml: volume in the whole scan.
        diameter_mm: largest in-plane diameter, of lesions.
        mask_value: its value in the mask image; None: only the box is known.
        parts: connected parts that are at least a tenth of the largest.
        code: SNOMED CT.
    """

    name: str
    xyxy_px: Window
    origin: str
    side: str | None = None
    area_mm2: float | None = None
    volume_ml: float | None = None
    diameter_mm: float | None = None
    mask_value: int | None = None
    parts: int = 1
    code: str | None = None


@dataclass(frozen=True)
class ImageFacts:
    """The facts table of one image.

    Attributes:
        labelled: names that were looked for: one that no structure has is absent.
        traces: names that are there but below 16 px: neither visible nor absent.
        group: the volume; never in two splits.
    """

    id: str
    path: str
    mask: str | None
    width: int
    height: int
    source: str
    split: str
    group: str
    modality: str
    region: str
    package: str
    licence: str
    plane: str | None
    contrast: str | None
    window: tuple[float, float] | None
    slice_index: int | None
    spacing_mm: tuple[float, float] | None
    labelled: tuple[str, ...]
    traces: tuple[str, ...]
    structures: tuple[Structure, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ImageFacts:
        """Read one line of facts.jsonl."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        rows: list[dict[str, Any]] = values["structures"]
        fields["structures"] = tuple(Structure(**{**row, "xyxy_px": tuple(row["xyxy_px"])}) for row in rows)
        return cls(**fields)


@cache
def load_facts() -> tuple[ImageFacts, ...]:
    """Return every facts table of the embedded set, sorted by id.

    Raises:
        FileNotFoundError: the installation lacks the set.
    """
    return _read_tables("facts.jsonl")


@cache
def load_counted() -> tuple[ImageFacts, ...]:
    """Return the tables that hold the vertebrae and ribs of the CT slices one by one, sorted by id.

    They have structures of any size: a question about them says how small a box may be.

    Raises:
        FileNotFoundError: the installation lacks the set.
    """
    return _read_tables("counted.jsonl")


def _read_tables(name: str) -> tuple[ImageFacts, ...]:
    path = EMBEDDED_ROOT / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: reinstall medmo, or rebuild the set with tools.embedded_set.build")
    with path.open(encoding="utf-8") as lines:
        return tuple(ImageFacts.from_json(json.loads(line)) for line in lines)


def mask_of(record: ImageFacts) -> NDArray[np.uint8] | None:
    """Return the mask (H, W) whose values are the structures' `mask_value`; None where only boxes are known."""
    return None if record.mask is None else _read_mask(record.mask)


@cache
def _read_mask(path: str) -> NDArray[np.uint8]:
    with Image.open(EMBEDDED_ROOT / path) as image:
        return np.asarray(image, dtype=np.uint8)


@cache
def names_in_group(group: str) -> tuple[str, ...]:
    """Return the names of the structures that any image of a volume shows, sorted."""
    return tuple(sorted({s.name for r in load_facts() if r.group == group for s in r.structures}))


@dataclass(frozen=True)
class Seen:
    """A structure as a window shows it: `xyxy_px` in pixels of the window, and which `share` of its area is visible."""

    structure: Structure
    xyxy_px: Window
    area_px: int
    share: float

    @property
    def name(self) -> str:
        """Name of the structure."""
        return self.structure.name


@dataclass(frozen=True)
class View:
    """Content of a window (x0, y0, x1, y1) of an image.

    Attributes:
        seen: structures of which the window shows enough.
        partial: names of structures it shows too little of to be called visible or absent.
    """

    record: ImageFacts
    window: Window
    seen: tuple[Seen, ...]
    partial: frozenset[str]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) px of the window."""
        return self.window[2] - self.window[0], self.window[3] - self.window[1]

    @property
    def is_whole(self) -> bool:
        """Whether the window is the image."""
        return self.window == (0, 0, self.record.width, self.record.height)

    @property
    def visible_names(self) -> tuple[str, ...]:
        """Names that are visible and nothing but visible, sorted, each once."""
        return tuple(sorted({s.name for s in self.seen} - self.partial))

    def is_absent(self, name: str) -> bool:
        """Return whether a structure was looked for and not a pixel of it is in the window."""
        shown = {s.name for s in self.seen} | self.partial
        return name in self.record.labelled and name not in shown

    def with_name(self, name: str) -> tuple[Seen, ...]:
        """Return what is visible of a name, from top to bottom and left to right."""
        return tuple(sorted((s for s in self.seen if s.name == name), key=lambda s: (s.xyxy_px[1], s.xyxy_px[0])))

    def centre(self, seen: Seen) -> tuple[float, float]:
        """Return the centre of a box as shares (x, y) of the window."""
        x1, y1, x2, y2 = seen.xyxy_px
        width, height = self.size
        return (x1 + x2) / 2 / width, (y1 + y2) / 2 / height


def look(
    record: ImageFacts, window: Window | None = None, only: str | None = None, *, min_area_px: int = MIN_AREA_PX
) -> View:
    """Return what a window of an image shows; boxes are drawn anew round the visible part of the masks.

    Args:
        record: facts table of the image.
        window: (x0, y0, x1, y1) in pixels, may reach beyond the image; None: the whole image.
        only: the one name of interest, which saves the time of the others; None: all.
        min_area_px: pixels of a mask that must be in the window for its structure to be visible.
    """
    window = window or (0, 0, record.width, record.height)
    mask = mask_of(record)
    seen: list[Seen] = []
    partial = set(record.traces)
    for structure in record.structures:
        if only is not None and structure.name != only:
            continue
        if mask is not None and structure.mask_value is not None:
            found = _masked(structure, mask, window)
        else:
            found = _clipped(structure, window)
        if found is None:
            continue
        box, area = found
        share = area / _whole_area(record.mask, structure)
        thinnest = min((box[2] - box[0]) / (window[2] - window[0]), (box[3] - box[1]) / (window[3] - window[1]))
        small = area < min_area_px and structure.mask_value is not None
        if share < MIN_SHARE or small or thinnest < MIN_SIDE_RATIO:
            partial.add(structure.name)
        else:
            seen.append(Seen(structure, box, area, share))
    return View(record, window, tuple(seen), frozenset(partial))


@cache
def _whole_area(mask: str | None, structure: Structure) -> int:
    """Return the pixels of a structure, or of its box where only that is known; every window asks for them again."""
    x1, y1, x2, y2 = structure.xyxy_px
    if mask is None or structure.mask_value is None:
        return (x2 - x1) * (y2 - y1)
    return int((_read_mask(mask)[y1:y2, x1:x2] == structure.mask_value).sum())


def _masked(structure: Structure, mask: NDArray[np.uint8], window: Window) -> tuple[Window, int] | None:
    """Return the box in the window and the visible pixels; None when there is none."""
    x1, y1, x2, y2 = structure.xyxy_px
    left, top = max(x1, window[0]), max(y1, window[1])
    right, bottom = min(x2, window[2]), min(y2, window[3])
    if left >= right or top >= bottom:
        return None
    hit = mask[top:bottom, left:right] == structure.mask_value
    area = int(hit.sum())
    if not area:
        return None
    rows, columns = np.nonzero(hit.any(1))[0], np.nonzero(hit.any(0))[0]
    x, y = left - window[0], top - window[1]
    box = (x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1)
    return box, area


def _clipped(structure: Structure, window: Window) -> tuple[Window, int] | None:
    """Do what `_masked` does for a structure of which only the box is known."""
    x1, y1, x2, y2 = structure.xyxy_px
    left, top, right, bottom = max(x1, window[0]), max(y1, window[1]), min(x2, window[2]), min(y2, window[3])
    if left >= right or top >= bottom:
        return None
    area = (right - left) * (bottom - top)
    x0, y0 = window[:2]
    return (left - x0, top - y0, right - x0, bottom - y0), area

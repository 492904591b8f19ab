"""The sample: one image-text example, one JSON object per line of a data file.

Full form and two short ones, all read by `sources.jsonl.load_jsonl`:

    {"id": "ct-7/vqa", "task": "vqa", "images": [{"path": "ct-7.png", "width": 512, "height": 512}],
     "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is the liver visible?"}]}],
     "answer": {"type": "yesno", "value": "yes"}, "split": "train", "group": "ct-7", "licence": "CC0-1.0"}
    {"image": "ct-7.png", "question": "Is the liver visible?", "answer": "yes"}
    {"image": "ct-7.png", "question": "Locate the liver.", "boxes": [{"label": "liver", "xyxy": [70, 90, 300, 310]}]}

Units: boxes in pixels of their image after its crop, as half-open edges (x1 <= x2, y1 <= y2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...boxes import AnyBoxes, Boxes, ImageBoxes
from ...errors import InputError
from .store import ImageStore

TASKS = ("caption", "vqa", "report", "retrieval", "grounding", "dialogue", "text")
SPLITS = ("train", "val", "test")
ANSWER_TYPES = ("yesno", "choice", "open", "boxes", "report")
STATUSES = ("present", "absent", "uncertain")
PLANES = ("axial", "coronal", "sagittal")
MAX_LABEL = 255
Message = dict[str, Any]
_OUTSIDE = {"record": False}
"""Metadata of fields that are set in memory and no part of the record."""


@dataclass(frozen=True)
class Outlines:
    """Label map of a picture: the structure that each pixel belongs to.

    Attributes:
        path: grey picture of the same size, relative to the data root, with a value for each structure and 0 for none.
        uptake: (value, arterial, venous) of the structures that contrast agent brightens: grey levels that they gain at
            a usual dose, early and late.

    Raises:
        ValueError: a row of `uptake` that is none.
    """

    path: str
    uptake: tuple[tuple[int, float, float], ...] = ()

    def __post_init__(self) -> None:
        for row in self.uptake:
            is_row = len(row) == 3 and isinstance(row[0], int) and 1 <= row[0] <= MAX_LABEL
            if not is_row or not all(math.isfinite(gain) for gain in row[1:]):
                expected = f"(a value from 1 to {MAX_LABEL}, a number, a number)"
                raise InputError(f"outlines {self.path}: uptake holds {row!r}, expected {expected}")


@dataclass(frozen=True)
class ImageRef:
    """Reference to an image file, and what to take of it.

    Attributes:
        path: relative to the data root.
        width: width of the picture in px, after `crop`; None: not known until the file is opened. height: the same.
        crop: (x0, y0, x1, y1) in px of the stored picture; may reach beyond it, what lies there is black.
        frame: frame of a multi-frame file, from 0.
        slice_index: slice of a volume.
        plane: plane of a volume.
        window: a preset's name, (center, width), or an index of the file's own; None: what the file says.
        spacing_mm: (x, y) size of a pixel.
        modality: such as CT.
        laterality_display: which of the patient's sides is at the picture's left.
        sha256: checksum of the file; of a folder of slices, see `images.digest`.
        outlines: its label map, by which `tones` move structures against each other; None: not known. Not part of the
            record.
    """

    path: str
    width: int | None = None
    height: int | None = None
    crop: tuple[int, int, int, int] | None = None
    frame: int | None = None
    slice_index: int | None = None
    plane: str = "axial"
    window: Any = None
    spacing_mm: tuple[float, float] | None = None
    modality: str | None = None
    laterality_display: str | None = None
    sha256: str | None = None
    outlines: Outlines | None = dataclasses.field(default=None, compare=False, metadata=_OUTSIDE)

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in px, or None where it is not known."""
        return None if self.width is None or self.height is None else (self.width, self.height)


@dataclass(frozen=True)
class BoxAnnotation:
    """Labelled box on one image.

    Attributes:
        label: what the box shows.
        xyxy_px: corners in px of the image after its crop.
        image: index into the sample's images.
        source: expert, silver (predicted), derived (from a mask) or curated.
        code: code in a terminology, such as SNOMED CT.
    """

    label: str
    xyxy_px: tuple[float, float, float, float]
    image: int = 0
    source: str | None = None
    code: str | None = None


@dataclass(frozen=True)
class Answer:
    """Right answer in a form that can be scored.

    Attributes:
        type: yesno, choice, open, boxes (the sample's boxes are the answer) or report.
        value: the text; None for boxes.
        choices: options of a choice question.
        image: index, where boxes lie among several images, of the image that a box lies in whose text does not say.
    """

    type: str
    value: str | None = None
    choices: tuple[str, ...] = ()
    image: int | None = None


@dataclass(frozen=True)
class Fact:
    """One finding of a report in a form that can be checked.

    Attributes:
        finding: name of the finding.
        status: present, absent or uncertain.
        site: place in the body.
        side: left or right of the patient.
        size_mm: largest diameter.
    """

    finding: str
    status: str = "present"
    site: str | None = None
    side: str | None = None
    size_mm: float | None = None


@dataclass(frozen=True)
class Sample:
    """One example: what is shown, what is asked, what is right, and where it comes from.

    Attributes:
        id: unique in its file.
        task: one of `TASKS`.
        images: images in the order of their placeholders in `messages`.
        messages: `{"role": ..., "content": text | parts}`. When the last turn is the user's, the answer to learn is
            written from `answer`.
        boxes: labelled boxes of the images. A box that a user's turn names (a part of type `boxes`) is given in the
            question; the others are to be found.
        answer: the right answer.
        facts: what a report must get right.
        split: train, val or test; None counts as train.
        group: patient or volume; never in two splits.
        licence: licence of image and text.
        provenance: where they come from.
        root: data root that `path` of the images is relative to, or the store that knows them by it; not part of the
            record.
        tone: seed of the tone curves that its pictures are shown under (`tones.random_tone`); None: as they are. Drawn
            in training, not part of the record.
    """

    id: str
    task: str
    images: tuple[ImageRef, ...] = ()
    messages: tuple[Message, ...] = ()
    boxes: tuple[BoxAnnotation, ...] = ()
    answer: Answer | None = None
    facts: tuple[Fact, ...] = ()
    split: str | None = None
    group: str | None = None
    licence: str | None = None
    provenance: Any = None
    root: Path | ImageStore | None = dataclasses.field(default=None, compare=False, repr=False, metadata=_OUTSIDE)
    tone: int | None = dataclasses.field(default=None, compare=False, metadata=_OUTSIDE)

    @property
    def sought(self) -> tuple[int, ...]:
        """Indices of the boxes that are to be found: all but those a user's turn gives."""
        given = {index for message in self.messages if message["role"] == "user" for index in _named_boxes(message)}
        return tuple(index for index in range(len(self.boxes)) if index not in given)

    @property
    def grounding_image(self) -> int:
        """Index of the image that a box lies in whose text does not say.

        It is `answer.image` where that is stated; else the image that all boxes to be found lie in; else the last.
        """
        if self.answer is not None and self.answer.image is not None:
            return self.answer.image
        images = {self.boxes[index].image for index in self.sought}
        return images.pop() if len(images) == 1 else max(0, len(self.images) - 1)

    def image_size(self) -> tuple[int, int] | None:
        """Return (width, height) px of the grounding image; None without images.

        Raises:
            ValueError: the size is not known yet: load the record with `load_jsonl`, or state it.
        """
        return self._size_of(self.images[self.grounding_image]) if self.images else None

    def truth_boxes(self) -> AnyBoxes | None:
        """Return the boxes that are to be found, as `boxes_at` does."""
        return self.boxes_at(self.sought)

    def boxes_at(self, indices: Sequence[int]) -> AnyBoxes | None:
        """Return the annotated boxes at `indices`, in px of their images.

        Returns:
            `Boxes` of a sample with one image, `ImageBoxes` of one with several, None without images.

        Raises:
            ValueError: a box outside its image, or an image of unknown size.
        """
        if not self.images:
            return None
        rows: list[list[list[float]]] = [[] for _ in self.images]
        labels: list[list[str]] = [[] for _ in self.images]
        for box in (self.boxes[index] for index in indices):
            rows[box.image].append(list(box.xyxy_px))
            labels[box.image].append(box.label)
        sizes = [self._size_of(image) for image in self.images]
        try:
            per_image = tuple(
                Boxes(corners, "pixel", size, tuple(names))  # type: ignore[arg-type]
                for corners, size, names in zip(rows, sizes, labels, strict=True)
            )
        except ValueError as error:
            raise InputError(f"{self.id}: {error}") from None
        return per_image[0] if len(per_image) == 1 else ImageBoxes(per_image, self.grounding_image)

    def _size_of(self, image: ImageRef) -> tuple[int, int]:
        if image.size is None:
            raise InputError(f"{self.id}: the size of {image.path} is not stated; add width and height")
        return image.size

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values; fields at their default are left out, but not that there is no box."""
        record = _plain(self)
        if self.answer is not None and self.answer.type == "boxes":
            record.setdefault("boxes", [])
        return record


def record_fields(kind: type[Any]) -> list[dataclasses.Field[Any]]:
    """Return the fields of a dataclass that its record has, without those that are set in memory."""
    return [field for field in dataclasses.fields(kind) if field.metadata.get("record", True)]


def message_parts(message: Message) -> list[dict[str, Any]]:
    """Return a turn's content as parts, a plain string as one part of text."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def message_text(message: Message) -> str:
    """Return the words of a turn, without its images and boxes."""
    return "".join(part.get("text", "") for part in message_parts(message))


def _named_boxes(message: Message) -> list[int]:
    """Return the indices of the boxes that a turn names."""
    parts = [] if isinstance(message["content"], str) else message["content"]
    return [index for part in parts if part["type"] == "boxes" for index in part["boxes"]]


def _plain(value: Any) -> Any:
    """Return dataclasses and tuples as JSON values, without fields at their default and those of memory."""
    if dataclasses.is_dataclass(value):
        pairs = ((field, getattr(value, field.name)) for field in record_fields(type(value)))
        return {f.name: _plain(v) for f, v in pairs if v != f.default}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value

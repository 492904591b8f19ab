"""Conventions of a checkpoint: the frame of its box coordinates, the grammar of its box text, its system prompt.

Nothing in a weights file says whether `[120, 40, 380, 260]` means thousandths of the image, pixels of the picture or
pixels of a square the training images were squashed to. The profile does, in `medmo_profile.json` beside the weights.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from .boxes import (
    FRAMES,
    GRAMMARS,
    AnyBoxes,
    Boxes,
    ImageBoxes,
    ParsedBoxes,
    parse_boxes,
    parse_image_boxes,
    parse_many,
    print_boxes,
    print_image_boxes,
    resize_like,
)
from .durable import write_json
from .errors import InputError

PROFILE_FILE = "medmo_profile.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointProfile:
    """A checkpoint's way of writing boxes and the system prompt that it was trained with.

    Args:
        frame: unit of the coordinates in the model's text: thousandths of the image side (`norm1000`), pixels
            (`pixel`) or fractions of the image side (`unit`).
        grammar: key of `medmo_core.boxes.GRAMMARS`, such as `qwen3_vl_json` or `medmo_box`.
        canvas: (width, height) in px of the square that training images were squashed to before their boxes were
            written; only for frame `pixel`. None: pixels of the image itself.
        system_prompt: text put before the first user turn; None: no system turn.
        step: written coordinates are multiples of it. Tens leave two digits that mean something, which a small model
            learns sooner; reading does not depend on it.

    Raises:
        ValueError: unknown frame or grammar, or a canvas where it has no meaning.
    """

    frame: str = "norm1000"
    grammar: str = "qwen3_vl_json"
    canvas: tuple[int, int] | None = None
    system_prompt: str | None = None
    step: int = 1

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise InputError(f"checkpoint profile: frame is {self.frame!r}, expected one of {', '.join(FRAMES)}")
        if self.grammar not in tuple(GRAMMARS):
            raise InputError(f"checkpoint profile: grammar is {self.grammar!r}, expected one of {', '.join(GRAMMARS)}")
        if self.system_prompt is not None and not isinstance(self.system_prompt, str):
            raise InputError(f"checkpoint profile: system_prompt is {self.system_prompt!r}, expected text or null")
        if type(self.step) is not int or self.step < 1 or (self.step > 1 and self.frame == "unit"):
            expected = "a whole number above 0, and 1 in frame 'unit'"
            raise InputError(f"checkpoint profile: step is {self.step!r}, expected {expected}")
        if self.canvas is None:
            return
        if self.frame != "pixel":
            raise InputError(
                f"checkpoint profile: canvas {self.canvas} needs frame 'pixel', but frame is {self.frame!r}; "
                "relative frames do not depend on a canvas"
            )
        sides = self.canvas if isinstance(self.canvas, (tuple, list)) else ()
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise InputError(
                f"checkpoint profile: canvas is {self.canvas!r}, expected [width, height], two positive whole numbers "
                "of pixels, or null"
            )
        object.__setattr__(self, "canvas", tuple(self.canvas))

    def text_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) in px that the numbers in the model's text refer to.

        It is the canvas where there is one, else the size of the image. Parse with this size, then resize the boxes
        to the image.
        """
        return self.canvas or image_size

    def write_boxes(self, boxes: AnyBoxes) -> str:
        """Write boxes as the checkpoint does: on its canvas, in its grammar and frame.

        Raises:
            ValueError: the grammar cannot write their labels, or the image one of several boxes lies in.
        """
        if isinstance(boxes, ImageBoxes):
            on_canvas = boxes.resize([self.text_size(size) for size in boxes.sizes])
            return print_image_boxes(on_canvas, self.grammar, self.frame, self.step)
        return print_boxes(boxes.resize(self.text_size(boxes.size)), self.grammar, self.frame, self.step)

    def parse_boxes(self, text: Any, where: AnyBoxes) -> ParsedBoxes[AnyBoxes]:
        """Read the checkpoint's boxes out of a text; never raises on any text.

        Args:
            text: what it wrote.
            where: the true boxes, or none in their place: they know the sizes of the images, and which of several
                images a box lies in that names none.

        Returns:
            Boxes of the same kind as `where`, as the text says them: in its frame and on its canvas. `resize_like`
            takes them to the images.
        """
        if isinstance(where, ImageBoxes):
            canvases = [self.text_size(size) for size in where.sizes]
            return parse_image_boxes(text, canvases, self.grammar, self.frame, default=where.default)
        return parse_boxes(text, self.text_size(where.size), self.grammar, self.frame)

    def parse_many(self, texts: Sequence[Any], where: Sequence[AnyBoxes]) -> list[ParsedBoxes[AnyBoxes]]:
        """Read the boxes out of many texts, as `parse_boxes` reads each, in less time."""
        sizes = {i: self.text_size(boxes.size) for i, boxes in enumerate(where) if isinstance(boxes, Boxes)}
        of_one_image = parse_many([texts[i] for i in sizes], list(sizes.values()), self.grammar, self.frame)
        parsed = dict(zip(sizes, of_one_image, strict=True))
        return [parsed[i] if i in parsed else self.parse_boxes(text, where[i]) for i, text in enumerate(texts)]

    def read_boxes(self, text: Any, where: AnyBoxes) -> ParsedBoxes[AnyBoxes]:
        """Read the checkpoint's boxes out of a text, in pixels of their images; arguments as for `parse_boxes`."""
        parsed = self.parse_boxes(text, where)
        return replace(parsed, boxes=resize_like(parsed.boxes, where))

    def to_json(self) -> dict[str, Any]:
        """Return the profile as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any, *, where: str = PROFILE_FILE) -> Self:
        """Read a profile from parsed JSON; `where` names the source in error messages."""
        if not isinstance(values, dict):
            raise InputError(f"{where}: expected a JSON object, found {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"{where}: unknown field {', '.join(unknown)}; a profile has {', '.join(known)}")
        try:
            return cls(**values)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None

    def save(self, folder: str | Path) -> Path:
        """Write `medmo_profile.json` into a checkpoint folder and return its path."""
        path = Path(folder) / PROFILE_FILE
        write_json(path, self.to_json(), indent=2)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the profile of a checkpoint folder.

        A folder without one is taken for an official Qwen3-VL checkpoint, and a log line says so. Nothing is guessed
        from names: for published MedMO weights pass `MEDMO` yourself, or save it beside them once.

        Raises:
            ValueError: the file is there but is not a valid profile.
        """
        path = Path(folder) / PROFILE_FILE
        if not path.is_file():
            default = cls()
            logger.warning(
                "%s has no %s: assuming Qwen3-VL's boxes (frame %s, grammar %s). For a checkpoint that speaks "
                "otherwise, such as MedMO's, pass its profile or save one there.",
                folder, PROFILE_FILE, default.frame, default.grammar,
            )  # fmt: skip
            return default
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not valid JSON ({error}); delete it, or write it with profile.save()") from None
        return cls.from_json(values, where=str(path))


QWEN3_VL = CheckpointProfile()
"""Official Qwen3-VL: a JSON list of `bbox_2d` and `label`, thousandths of the image."""

QWEN3_VL_TENS = CheckpointProfile(step=10)
"""As Qwen3-VL, its coordinates rounded to tens: for small models."""

MEDMO = CheckpointProfile(frame="norm1000", grammar="medmo_box")
"""Published MedMO: `<box>[[x1, y1, x2, y2]]</box>`.

Its authors do not state the frame; every published example fits a 0 to 999 grid, which is what this says.
"""

MEDMO_CANVAS768 = CheckpointProfile(frame="pixel", grammar="medmo_box", canvas=(768, 768))
"""MedMO as its released fine-tuning loaders would train it: pixels of a 768 x 768 canvas."""

PROFILES = {
    "qwen3_vl": QWEN3_VL,
    "qwen3_vl_tens": QWEN3_VL_TENS,
    "medmo": MEDMO,
    "medmo_canvas768": MEDMO_CANVAS768,
}

"""An answer about images: text, boxes in pixels and millimetres, and the images as the model saw them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from PIL import Image

from ..boxes import AnyBoxes, by_image
from ..data.images.loaded import LoadedImage
from ..data.images.overlay import beside, overlay_boxes
from ..notice import RESEARCH_ONLY


@dataclass(frozen=True)
class Reply:
    """An answer of a checkpoint about one image, or about several.

    Attributes:
        text: words of the model, unchanged.
        finished: whether the model ended its answer; if not, it was cut at max_new_tokens.
        boxes: boxes that could be read out of the text, in pixels of the image they lie in; `ImageBoxes` where there
            are several images.
        errors: sentences about parts of the text that could not be read as boxes.
        images: the images as they were shown, with their geometry.
    """

    text: str
    finished: bool
    boxes: AnyBoxes
    errors: tuple[str, ...]
    images: tuple[LoadedImage, ...] = field(repr=False, compare=False)

    def corners_mm(self) -> list[list[list[float]] | None]:
        """Return four corners x, y, z per box in the patient's space (DICOM axes); None without a geometry."""
        corners: list[list[list[float]] | None] = []
        for boxes, image in zip(by_image(self.boxes), self.images, strict=True):
            geometry = image.geometry
            corners += [None] * len(boxes) if geometry is None else boxes.to_patient(geometry).tolist()
        return corners

    def to_json(self) -> dict[str, Any]:
        """Return plain values, images by index from 0 where there are several; nothing in them names a person."""
        boxes: list[dict[str, Any]] = [
            {"label": label, "xyxy_px": [round(v, 1) for v in row]} | ({"image": index} if len(self.images) > 1 else {})
            for index, part in enumerate(by_image(self.boxes))
            for label, row in zip(part.labels, part.xyxy.tolist(), strict=True)
        ]
        for box, corners in zip(boxes, self.corners_mm(), strict=True):
            if corners is not None:
                box["corners_mm"] = [[round(v, 2) for v in corner] for corner in corners]
        sizes = [list(image.size) for image in self.images]
        return {
            "text": self.text,
            "finished": self.finished,
            "boxes": boxes,
            "errors": list(self.errors),
            **({"image_sizes": sizes} if len(sizes) > 1 else {"image_size": sizes[0]}),
            "notice": RESEARCH_ONLY,
        }

    def picture(self, title: str = "") -> Image.Image:
        """Return the images with their boxes, side by side, under a title such as the question."""
        titles = [f"Image {n}: {title}" for n in range(1, len(self.images) + 1)] if len(self.images) > 1 else [title]
        parts = zip(self.images, by_image(self.boxes), titles, strict=True)
        return beside([partial(overlay_boxes, i.pixels, b, title=words, geometry=i.geometry) for i, b, words in parts])

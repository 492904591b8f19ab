"""Search of data files of any kind for faults: of records, of their images, and between records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ...boxes import GRAMMARS, Boxes, under_step
from ..images.digest import check_digest
from ..images.load import ImageError, check_image
from ..images.patches import MAX_ASPECT_RATIO
from ..images.sizes import stored_size
from ..records.faults import Fault, RecordError
from ..records.read import box_faults
from ..records.sample import ImageRef, Sample
from ..records.store import Root
from .open_source import record_files
from .record_source import FoundRecord, RecordFiles, repeated
from .splits import FoundPlace, SplitCheck

SizeOf = Callable[[ImageRef, Root], tuple[int, int]]
"""Reader of a picture's size, before its crop."""


def iter_faults(name: str | Path, root: str | Path | None = None) -> Iterator[Fault]:
    """Yield every fault of the data files that a name means.

    Args:
        name: a file, folder or pattern, as for `open_source`.
        root: folder that image paths are relative to; None: the first file's own.

    Raises:
        InputError: no such file, or files of several kinds.
    """
    return FileCheck(record_files(str(name), root)).faults()


@dataclass
class FileCheck:
    """Search of data files for faults; one bad record or image does not end it.

    Attributes:
        files: the files.
        headers_only: whether of images only the header is read, which is faster and finds no picture that is cut.
        num_records: records read so far.
    """

    files: RecordFiles
    headers_only: bool = False
    num_records: int = 0
    _ids: dict[str, FoundPlace] = field(default_factory=dict)
    _unlicensed: list[FoundPlace] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._splits = SplitCheck(self.files.record_word, contents=not self.headers_only)
        self._size_of = stored_size if self.headers_only else check_image

    def faults(self) -> Iterator[Fault]:
        """Yield every fault, in the order of the files."""
        return (fault for fault in self.events() if fault is not None)

    def events(self) -> Iterator[Fault | None]:
        """Yield every fault, in the order of the files, and None after each record."""
        try:
            for found in self.files.scan():
                yield from self._of_record(found)
                yield None
        except RecordError as error:  # a table that cannot be read on
            yield from error.faults
            return
        first = str(self.files.paths[0])
        if self.num_records == 0:
            yield Fault("", "holds no sample", self.files.record_form, "", file=first)
        if self._unlicensed:
            count, place = len(self._unlicensed), self._where(self._unlicensed[0])
            yield Fault(
                "licence",
                f"is missing in {count} record(s), the first in {place}",
                "the licence of image and text",
                'add "licence": "CC0-1.0" or what applies, so that a model trained on it can say so',
                level="warning",
                file=first,
            )

    def _of_record(self, found: FoundRecord) -> Iterator[Fault]:
        place, sample, faults = (found.file, found.place.number), found.sample, list(found.faults)
        if found.place.number:  # without one, the fault is of a file as a whole
            self.num_records += 1
        if sample is not None:
            faults += repeated(sample, *place, self._ids, self.files.record_word)
            faults += self._splits.faults(sample, place)
            if not any(fault.field.startswith("images") for fault in faults):
                faults += _image_faults(sample, size_of=self._size_of, check_boxes=not faults)
            if not sample.licence:
                self._unlicensed.append(place)
        yield from (fault.at(*place) for fault in faults)

    def _where(self, place: FoundPlace) -> str:
        file, number = place
        is_only_file = len(self.files.paths) == 1 and file == str(self.files.paths[0])
        return f"{self.files.record_word} {number}" if is_only_file else f"{file}:{number}"


def _image_faults(sample: Sample, *, size_of: SizeOf, check_boxes: bool) -> list[Fault]:
    """Read every image of a record and compare it with what the record says.

    Boxes of images without a stated size could not be judged before; they are now, if the record is whole.
    """
    faults: list[Fault] = []
    images: list[ImageRef] = []
    for index, image in enumerate(sample.images):
        try:
            size = size_of(image, sample.root)
        except (ValueError, OSError, ImportError) as error:  # an ImageError, or what the system says of a path
            faults.append(Fault(f"images[{index}].path", str(error)))
            images.append(image)
            continue
        try:
            check_digest(image, sample.root)
        except ImageError as error:
            faults.append(Fault(f"images[{index}].sha256", str(error)))
        if image.crop is None and image.size not in (None, size):
            faults.append(
                Fault(
                    f"images[{index}].width",
                    f"the record says {image.width}x{image.height} px, the file has {size[0]}x{size[1]}",
                    f"width {size[0]} and height {size[1]}",
                    "correct them and check that the boxes are in pixels of this file",
                )
            )
        images.append(replace(image, width=size[0], height=size[1]) if image.size is None else image)
        long, short = max(images[-1].size or size), min(images[-1].size or size)
        if long > MAX_ASPECT_RATIO * short:
            expected, fix = (
                f"at most {MAX_ASPECT_RATIO} times longer than wide",
                "crop it, or cut it into several images",
            )
            faults.append(Fault(f"images[{index}].path", f"{image.path}: is {long}x{short} px", expected, fix))
    whole = replace(sample, images=tuple(images))
    if check_boxes and images != list(sample.images):
        faults += box_faults(whole)
    return faults or ([*_small_boxes(whole), *_odd_labels(whole)] if check_boxes else [])


def _odd_labels(sample: Sample) -> list[Fault]:
    """Return warnings of labels that checkpoints which write boxes in tagged text cannot say."""
    odd = GRAMMARS["medmo_box"].label_fault
    return [
        Fault(
            f"boxes[{index}].label",
            f"{box.label!r} cannot be written in grammar medmo_box: training that writes it leaves the sample out",
            "one line without brackets, tags or end marks",
            "rename it, or train checkpoints that write boxes as JSON",
            level="warning",
        )
        for index, box in enumerate(sample.boxes)
        if odd(box.label)
    ]


def _small_boxes(sample: Sample) -> list[Fault]:
    """Return warnings of boxes that are too small for the text that a model writes."""
    warnings = []
    for number, image in enumerate(sample.images):
        rows = [index for index, box in enumerate(sample.boxes) if box.image == number]
        if not rows or image.size is None:
            continue
        corners = torch.tensor([sample.boxes[index].xyxy_px for index in rows], dtype=torch.float64)
        boxes = Boxes(corners, "pixel", image.size)
        for index in (rows[i] for i in under_step(boxes)):
            width, height = image.size
            warnings.append(
                Fault(
                    f"boxes[{index}].xyxy_px",
                    f"({sample.boxes[index].label}) is narrower or lower than the step that boxes are written in",
                    f"at least {width / 1000:g} px wide and {height / 1000:g} px high in {width}x{height} px",
                    "crop the image around it, or expect it to be taught one step large",
                    level="warning",
                )
            )
    return warnings

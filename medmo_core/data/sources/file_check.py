"""Search of data files of any kind for faults: of records, of their images, and between records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..images.load import ImageError, safe_path
from ..images.sizes import stored_size
from ..records.faults import Fault, RecordError
from ..records.read import box_faults
from ..records.sample import ImageRef, Sample
from ..records.store import Root
from .open_source import record_files
from .record_source import FoundRecord, RecordFiles, repeated

FoundPlace = tuple[str, int]
"""File and number of a record, as messages name them."""


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
        num_records: records read so far.
    """

    files: RecordFiles
    num_records: int = 0
    _ids: dict[str, FoundPlace] = field(default_factory=dict)
    _splits: dict[str, tuple[str, FoundPlace]] = field(default_factory=dict)
    _unlicensed: list[FoundPlace] = field(default_factory=list)

    def faults(self) -> Iterator[Fault]:
        """Yield every fault, in the order of the files."""
        try:
            for found in self.files.scan():
                yield from self._of_record(found)
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
            faults += self._split_faults(sample, place)
            if not any(fault.field.startswith("images") for fault in faults):
                faults += _image_faults(sample, check_boxes=not faults)
            if not sample.licence:
                self._unlicensed.append(place)
        yield from (fault.at(*place) for fault in faults)

    def _split_faults(self, sample: Sample, place: FoundPlace) -> list[Fault]:
        if sample.group is None:
            return []
        split = sample.split or "train"
        other, first = self._splits.setdefault(sample.group, (split, place))
        if other == split:
            return []
        return [
            Fault(
                "split",
                f"group {sample.group!r} is in split {split!r} here and in {other!r} in {self._where(first)}",
                "one split per patient or volume",
                "move all of its records into one split: pictures of one patient on both sides make results look too "
                "good",
            )
        ]

    def _where(self, place: FoundPlace) -> str:
        file, number = place
        is_only_file = len(self.files.paths) == 1 and file == str(self.files.paths[0])
        return f"{self.files.record_word} {number}" if is_only_file else f"{file}:{number}"


def _image_faults(sample: Sample, *, check_boxes: bool) -> list[Fault]:
    """Open every image of a record and compare it with what the record says.

    Boxes of images without a stated size could not be judged before; they are now, if the record is whole.
    """
    faults: list[Fault] = []
    images: list[ImageRef] = []
    for index, image in enumerate(sample.images):
        try:
            size = stored_size(image, sample.root)
            faults += _digest_faults(image, sample.root, index)
        except (ImageError, ImportError) as error:
            faults.append(Fault(f"images[{index}].path", str(error)))
            images.append(image)
            continue
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
    if check_boxes and images != list(sample.images):
        faults += box_faults(replace(sample, images=tuple(images)))
    return faults


def _digest_faults(image: ImageRef, root: Root, index: int) -> list[Fault]:
    if image.sha256 is None:
        return []
    if root is None or isinstance(root, str | Path):
        data = safe_path(image.path, root).read_bytes()
    else:
        with root.open(image.path) as stream:
            data = stream.read()
    found = hashlib.sha256(data).hexdigest()
    if found == image.sha256.lower():
        return []
    return [Fault(f"images[{index}].sha256", f"the file's is {found}", image.sha256, "restore the file, or update it")]

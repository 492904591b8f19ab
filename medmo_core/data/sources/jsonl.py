"""Data files: one sample per line, read whole or searched for faults."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..images.load import ImageError, safe_path
from ..images.sizes import stored_size
from ..records.faults import Fault, RecordError
from ..records.read import box_faults, read_sample
from ..records.sample import ImageRef, Sample
from .record_source import FoundRecord, Place, Span, checked, repeated


@dataclass(frozen=True)
class JsonlFiles:
    """One JSON object per line.

    Attributes:
        path: the file.
        root: folder that image paths are relative to.
    """

    path: Path
    root: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def scan(self) -> Iterator[FoundRecord]:
        """Read all lines that are not blank."""
        for place, sample, faults in _records(self.path):
            rooted = None if sample is None else replace(sample, root=self.root)
            yield FoundRecord(place, rooted, faults, file=str(self.path))

    def read(self, place: Place, spans: Sequence[Span]) -> Sample:
        """Read one line again.

        Raises:
            RecordError: it is not what it was.
        """
        with self.path.open("rb") as file:
            file.seek(place.start)
            sample, faults = _read_line(file.read(place.length), self.path, place.number)
        if sample is None or faults:
            raise RecordError([fault.at(str(self.path), place.number) for fault in faults])
        return replace(sample, root=self.root)


def load_jsonl(path: str | Path, root: str | Path | None = None) -> list[Sample]:
    """Read a data file.

    Sizes that the records do not state are read from the image files. Files whose size is stated are not opened.

    Args:
        path: one JSON object per line.
        root: folder that image paths are relative to; None: the file's own.

    Returns:
        The samples in order, each with its data root.

    Raises:
        RecordError: naming file, line, field, what was expected and the fix.
    """
    path = Path(path)
    files = JsonlFiles(path, path.parent if root is None else Path(root))
    samples = [sample for _, sample in checked(files.scan())]
    if not samples:
        raise RecordError([Fault("", "holds no sample", "one JSON object per line", "", file=str(path))])
    return samples


def iter_faults(path: str | Path, root: str | Path | None = None) -> Iterator[Fault]:
    """Yield every fault of a data file: of its records, of its image files, and between its records.

    Args:
        path: one JSON object per line.
        root: folder that image paths are relative to; None: the file's own.
    """
    path = Path(path)
    root = path.parent if root is None else Path(root)
    seen: dict[str, tuple[str, int]] = {}
    splits: dict[str, tuple[str, int]] = {}
    unlicensed: list[int] = []
    num_records = 0
    for place, sample, faults in _records(path):
        num_records += 1
        line = place.number
        if sample is not None:
            faults += repeated(sample, str(path), line, seen)
            faults += _split_faults(sample, line, splits)
            if not any(fault.field.startswith("images") for fault in faults):
                faults += _file_faults(sample, root, check_boxes=not faults)
            if not sample.licence:
                unlicensed.append(line)
        yield from (fault.at(str(path), line) for fault in faults)
    if num_records == 0:
        yield Fault("", "holds no sample", "one JSON object per line", "", file=str(path))
    if unlicensed:
        yield Fault(
            "licence",
            f"is missing in {len(unlicensed)} record(s), the first in line {unlicensed[0]}",
            "the licence of image and text",
            'add "licence": "CC0-1.0" or what applies, so that a model trained on it can say so',
            level="warning",
            file=str(path),
        )


def _records(path: Path) -> Iterator[tuple[Place, Sample | None, list[Fault]]]:
    """Yield place, sample (as far as it could be read) and faults of every line that is not blank."""
    start = 0
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            if raw.strip() and raw.strip() != b"\xef\xbb\xbf":
                yield Place(0, start, len(raw), line), *_read_line(raw, path, line)
            start += len(raw)


def _read_line(raw: bytes, path: Path, line: int) -> tuple[Sample | None, list[Fault]]:
    faults: list[Fault] = []
    values = parse_json(raw, faults)
    return None if faults else read_sample(values, faults, default_id=f"{path.stem}:{line}"), faults


def parse_json(raw: bytes, faults: list[Fault]) -> Any:
    """Return the JSON value of a record's bytes and note what is wrong with them."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        faults.append(Fault("", f"is not UTF-8 at byte {error.start}", "UTF-8 text", "save the file as UTF-8"))
    except json.JSONDecodeError as error:
        where = f"character {error.pos + 1}"
        fix = "write one complete JSON object per line, without line breaks inside"
        if raw.strip() in (b"[", b"{"):
            fix = "this looks like one JSON document over many lines: write each record on one line, without [ and ]"
        faults.append(Fault("", f"is not valid JSON ({error.msg} at {where})", "a JSON object", fix))
    except (RecursionError, ValueError):
        faults.append(Fault("", "cannot be read as JSON (nested too deep, or a number too long)", "a JSON object"))
    return None


def _split_faults(sample: Sample, line: int, splits: dict[str, tuple[str, int]]) -> list[Fault]:
    if sample.group is None:
        return []
    split = sample.split or "train"
    other, first = splits.setdefault(sample.group, (split, line))
    if other == split:
        return []
    return [
        Fault(
            "split",
            f"group {sample.group!r} is in split {split!r} here and in {other!r} in line {first}",
            "one split per patient or volume",
            "move all of its records into one split: pictures of one patient on both sides make results look too good",
        )
    ]


def _file_faults(sample: Sample, root: Path, *, check_boxes: bool) -> list[Fault]:
    """Open every image of a record and compare it with what the record says.

    Boxes of images without a stated size could not be judged before; they are now, if the record is whole.
    """
    faults: list[Fault] = []
    images: list[ImageRef] = []
    for index, image in enumerate(sample.images):
        try:
            size = stored_size(image, root)
            faults += _digest_faults(image, root, index)
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


def _digest_faults(image: ImageRef, root: Path, index: int) -> list[Fault]:
    if image.sha256 is None:
        return []
    found = hashlib.sha256(safe_path(image.path, root).read_bytes()).hexdigest()
    if found == image.sha256.lower():
        return []
    return [Fault(f"images[{index}].sha256", f"the file's is {found}", image.sha256, "restore the file, or update it")]

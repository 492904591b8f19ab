"""Data files: one sample per line, read whole or searched for faults."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .header import stored_size
from .image import ImageError, safe_path
from .read_record import box_faults, read_sample
from .record import ImageRef, Sample
from .validate import Fault, RecordError


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
    root = path.parent if root is None else Path(root)
    samples: list[Sample] = []
    seen: dict[str, int] = {}
    for line, sample, faults in _records(path):
        if sample is not None and not faults:
            sample, faults = _with_sizes(sample, root)
        if sample is not None:
            faults += _repeated(sample, line, seen)
        if sample is None or faults:
            raise RecordError([fault.at(str(path), line) for fault in faults])
        samples.append(replace(sample, root=root))
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
    seen: dict[str, int] = {}
    splits: dict[str, tuple[str, int]] = {}
    unlicensed: list[int] = []
    num_records = 0
    for line, sample, faults in _records(path):
        num_records += 1
        if sample is not None:
            faults += _repeated(sample, line, seen)
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


def _records(path: Path) -> Iterator[tuple[int, Sample | None, list[Fault]]]:
    """Yield line number, sample (as far as it could be read) and faults of every line that is not blank."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            if not raw.strip() or raw.strip() == b"\xef\xbb\xbf":
                continue
            faults: list[Fault] = []
            values = _parse(raw, faults)
            sample = None if faults else read_sample(values, faults, default_id=f"{path.stem}:{line}")
            yield line, sample, faults


def _parse(raw: bytes, faults: list[Fault]) -> Any:
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


def _with_sizes(sample: Sample, root: Path) -> tuple[Sample, list[Fault]]:
    """Return the sample with the sizes of all its images, and the faults that show once they are known."""
    images: list[ImageRef] = []
    for index, image in enumerate(sample.images):
        if image.size is None:
            try:
                width, height = stored_size(image, root)
            except (ImageError, ImportError) as error:
                return sample, [Fault(f"images[{index}].path", str(error))]
            image = replace(image, width=width, height=height)
        else:
            try:
                safe_path(image.path, root)
            except ImageError as error:
                return sample, [Fault(f"images[{index}].path", str(error))]
        images.append(image)
    sample = replace(sample, images=tuple(images))
    return sample, box_faults(sample)


def _repeated(sample: Sample, line: int, seen: dict[str, int]) -> list[Fault]:
    first = seen.setdefault(sample.id, line)
    if first == line:
        return []
    return [Fault("id", f"{sample.id!r} is also the id of line {first}", "an id of its own", "number them")]


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

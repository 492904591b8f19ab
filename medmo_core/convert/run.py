"""A conversion from a file or folder to a JSONL file: every record is checked, every row left out has its reason."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.images.sizes import shown_size
from ..data.records.faults import Fault, RecordError
from ..data.records.read import box_faults, sample_from_json
from ..durable import replacing
from ..errors import InputError
from .coco import convert_coco
from .conversations import convert_conversations
from .dicom_folder import convert_dicom_folder
from .outcome import NONE_LEFT, Converter, Job, LeftOut, Record
from .table import convert_table
from .yolo import convert_yolo

OF_A_BOX = re.compile(r"boxes\[(\d+)\]")
CONVERTERS: dict[str, Converter] = {
    "coco": convert_coco,
    "llava": convert_conversations,
    "sharegpt": convert_conversations,
    "yolo": convert_yolo,
    "csv": convert_table,
    "dicomdir": convert_dicom_folder,
}


@dataclass
class Counts:
    """Numbers of a conversion.

    Attributes:
        written: records written.
        boxes: boxes in them.
        rows_left_out: rows that became no record.
        parts_left_out: boxes, and other parts of rows, that are in no record.
        root: folder that the picture names in the records are relative to.
    """

    root: Path
    written: int = 0
    boxes: int = 0
    rows_left_out: int = 0
    parts_left_out: int = 0


def convert(
    name: str,
    source: Path,
    out: Path,
    *,
    pictures: Path | None = None,
    question: str | None = None,
    answer: str | None = None,
    report: Callable[[LeftOut], None],
) -> Counts:
    """Write the records of a file or folder.

    Args:
        name: format, one of `CONVERTERS`.
        source: file or folder to read.
        out: JSONL file to write; it appears once it is whole.
        pictures: folder that picture names in the source are relative to; None: that of the source.
        question: question of records whose format has none; None: the format's usual one.
        answer: answer to it, where the format has neither answers nor boxes.
        report: receiver of everything that is left out.

    Raises:
        InputError: the source is not there or not of this format, or nothing of it could be used.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    if out.resolve() == source.resolve():
        raise InputError(f"{out}: is what is read; write to another file")
    if name not in ("yolo", "dicomdir") and not source.is_file():
        raise InputError(f"{source}: is a folder; name the file of format {name}")
    if name in ("yolo", "dicomdir") and pictures is not None:
        raise InputError(f"{pictures}: pictures of {name} stand in its own folder; leave the folder out")
    own = source if source.is_dir() else source.parent
    job = Job(source, own if pictures is None else pictures, question)
    if not job.pictures.is_dir():
        raise InputError(f"{job.pictures}: no such folder of pictures")
    inside = job.pictures.resolve().is_relative_to(out.parent.resolve())
    prefix = os.path.relpath(job.pictures.resolve(), out.parent.resolve()) if inside else "."
    counts = Counts(out.parent if inside else job.pictures)
    seen: set[str] = set()
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial, partial.open("w", encoding="utf-8") as file:
        for number, outcome in enumerate(CONVERTERS[name](job), start=1):
            left_out = outcome if isinstance(outcome, LeftOut) else None
            if not isinstance(outcome, LeftOut):
                if answer is not None and not {"answer", "boxes", "messages"} & set(outcome):
                    outcome["answer"] = answer
                record, left_out = _checked(_placed(outcome, prefix), counts.root, number, seen, report, counts)
                if record is not None:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    counts.written += 1
                    counts.boxes += len(record.get("boxes", ()))
            if left_out is not None:
                counts.rows_left_out += not left_out.is_part
                counts.parts_left_out += left_out.is_part
                report(left_out)
        if counts.written == 0:
            raise InputError(f"{source}: nothing in it could be used as {name}; no file was written")
    return counts


def _placed(record: Record, prefix: str) -> Record:
    """Return a record whose picture names are relative to the root of the file that is written."""

    def moved(image: Any) -> Any:
        if isinstance(image, dict):
            return {**image, "path": moved(image["path"])}
        return os.path.normpath(f"{prefix}/{image}").replace(os.sep, "/") if prefix != "." else image

    record = dict(record)
    if "image" in record:
        record["image"] = moved(record["image"])
    if "images" in record:
        record["images"] = [moved(image) for image in record["images"]]
    return record


def _checked(
    record: Record, root: Path, number: int, seen: set[str], report: Callable[[LeftOut], None], counts: Counts
) -> tuple[Record | None, LeftOut | None]:
    """Return a record without the boxes that cannot be used, or why the whole of it cannot."""
    name = str(record.get("id", number))
    try:
        faults = _faults(record, root)
        wrong = {int(match.group(1)): fault for fault in faults if (match := OF_A_BOX.match(fault.field))}
        for index, fault in wrong.items():
            counts.parts_left_out += 1
            report(LeftOut(f"{name} box {index}", fault.problem, is_part=True))
        if wrong:
            record = {**record, "boxes": [box for index, box in enumerate(record["boxes"]) if index not in wrong]}
            if not record["boxes"]:
                return None, LeftOut(name, NONE_LEFT)
            faults = _faults(record, root)
        if faults:
            return None, LeftOut(name, f"{faults[0].field}: {faults[0].problem}")
    except (ValueError, OSError, ImportError) as error:
        return None, LeftOut(name, str(error))
    if name in seen:
        return None, LeftOut(name, "an earlier record has this id")
    seen.add(name)
    return record, None


def _faults(record: Record, root: Path) -> list[Fault]:
    """Return the faults of a record beside its pictures.

    Raises:
        ValueError: a picture cannot be opened, or has another size than is stated.
    """
    try:
        sample = sample_from_json(record)
    except RecordError as error:
        return list(error.faults)
    images = []
    for image in sample.images:
        width, height = shown_size(replace(image, width=None, height=None), root)
        if image.size not in (None, (width, height)):
            raise InputError(f"{image.width}x{image.height} px is stated, the file has {width}x{height}")
        images.append(replace(image, width=width, height=height))
    return box_faults(replace(sample, images=tuple(images)))

"""Recognition of what is given as data and is none: packed files, pictures, formats of other tools."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

from ..records.faults import Fault, RecordError

HEAD_BYTES = 1 << 16  # of a file, enough to recognise what it is
MAGIC = (
    (b"\x1f\x8b", 0, "packed by gzip", "unpack it first: gunzip FILE"),
    (b"BZh", 0, "packed by bzip2", "unpack it first: bunzip2 FILE"),
    (b"\xfd7zXZ\0", 0, "packed by xz", "unpack it first: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", 0, "packed by zstd", "unpack it first: unzstd FILE"),
    (b"PK\x03\x04", 0, "a zip archive", "unpack it first: unzip FILE"),
    (b"\x89PNG", 0, "a PNG picture", ""),
    (b"\xff\xd8\xff", 0, "a JPEG picture", ""),
    (b"GIF8", 0, "a GIF picture", ""),
    (b"II*\0", 0, "a TIFF picture", ""),
    (b"MM\0*", 0, "a TIFF picture", ""),
    (b"WEBP", 8, "a WebP picture", ""),
    (b"DICM", 128, "a DICOM file", ""),
    (b"n+1\0", 344, "a NIfTI volume", ""),
    (b"%PDF", 0, "a PDF document", ""),
    (b"PAR1", 0, "a Parquet table", "give its name the ending .parquet"),
    (b"ustar", 257, "a tar archive", "give its name the ending .tar"),
)
"""Bytes, where they stand, what a file is that has them, and what to do about it."""
SPREADSHEETS = (".xlsx", ".xls", ".ods")
OF_PICTURES = 'write a data file that names it: {"image": "FILE", "question": "...", "answer": "..."}'
FORMATS = {
    "coco": "a COCO file",
    "llava": "a file of LLaVA conversations",
    "sharegpt": "a file of ShareGPT conversations",
    "yolo": "a YOLO data set",
    "csv": "a table in text form",
    "dicomdir": "a folder of DICOM files",
}
"""Formats of other tools, by the name that `medmo convert` has for them."""
IMAGE_IN_A_TEXT = re.compile(r'"content"\s*:\s*"(?:[^"\\]|\\.)*<image>')
FILES_LOOKED_AT = 64  # in a folder, for the first that is DICOM


def refuse_other_kinds(path: Path, expected: str) -> None:
    """Refuse a file whose first bytes show that it is packed, a picture, or in the format of another tool.

    Args:
        path: the file.
        expected: what belongs there, for the message.

    Raises:
        RecordError: naming what the file is and what to do.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise RecordError([Fault("", f"cannot be read ({error.strerror})", expected, "", file=str(path))]) from None
    if path.suffix.lower() in SPREADSHEETS:
        fix = f"save it as CSV in UTF-8, then: {command('csv', path.with_suffix('.csv'))}"
        raise RecordError([Fault("", "is a spreadsheet", expected, fix, file=str(path))])
    for magic, start, what, fix in MAGIC:
        # The advice to name it .tar is not for what has that name.
        if head[start : start + len(magic)] == magic and path.suffix.lower() not in fix.split():
            raise RecordError([Fault("", f"is {what}", expected, fix or OF_PICTURES, file=str(path))])
    name = _text_format(path, head)
    if name is not None:
        raise RecordError([Fault("", f"is {FORMATS[name]}", expected, command(name, path), file=str(path))])


def folder_format(folder: Path) -> str | None:
    """Return the name of the format that a folder without data files seems to be in; None: no known one."""
    names = [item.name for item in folder.iterdir()]
    if any(name.upper() == "DICOMDIR" for name in names):
        return "dicomdir"
    tables = [folder / name for name in names if name.endswith((".yaml", ".yml"))]
    if "labels" in names or any(_has_names(table.read_bytes()[:HEAD_BYTES]) for table in tables):
        return "yolo"
    files = (item for item in folder.rglob("*") if item.is_file())
    return "dicomdir" if any(_is_dicom(file) for file in itertools.islice(files, FILES_LOOKED_AT)) else None


def command(name: str, path: Path) -> str:
    """Return the command that converts a file or folder of a format."""
    return f"medmo convert {name} {path} -o {path.resolve().stem}.jsonl"


def _text_format(path: Path, head: bytes) -> str | None:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return "csv"
    if suffix in (".yaml", ".yml"):
        return "yolo" if _has_names(head) else None
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if text[:1] not in ("{", "["):
        columns = re.split(r"[,;\t]", text.partition("\n")[0].strip().lower())
        return "csv" if "path" in columns and {"question", "answer", "label"} & set(columns) else None
    try:
        first = json.loads(text.partition("\n")[0])
    except (ValueError, RecursionError):
        first = None
    turns = text.partition("\n")[0] if isinstance(first, dict) else text
    if '"images"' in turns and '"messages"' in turns and IMAGE_IN_A_TEXT.search(turns):
        return "sharegpt"
    if isinstance(first, dict) and not {"annotations", "categories", "conversations"} & set(first):
        return None  # a record of our own, or meant as one
    if re.search(r'"conversations"\s*:\s*\[', text):
        return "sharegpt" if re.search(r'"images"\s*:', text) else "llava"
    is_coco = re.search(r'"(images|annotations|categories)"\s*:\s*\[', text) is not None
    return "coco" if is_coco and re.search(r'"(file_name|category_id|supercategory)"\s*:', text) else None


def _has_names(head: bytes) -> bool:
    return re.search(rb"^names\s*:", head, re.MULTILINE) is not None


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"

"""YOLO data sets: a text file of classes and normalised boxes beside, or in `labels/` for, every picture."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from ..data.images.sizes import stored_size
from ..data.records.sample import ImageRef
from ..errors import InputError
from .outcome import DEFAULT_QUESTION, NONE_LEFT, Job, LeftOut, Outcome

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
NAME_LINE = re.compile(r"^\s+(?:(\d+)\s*:|-)\s*(.+?)\s*$")
INLINE = re.compile(r"\s*(?:(\d+)\s*:)?\s*('[^']*'|\"[^\"]*\"|[^,]+)")
SLACK = 1e-3  # of the side, by which rounded fractions may lie outside


def convert_yolo(job: Job) -> Iterator[Outcome]:
    """Yield a record per picture with a label file; an empty one says that nothing is there.

    Splits are not taken from names of folders.
    """
    names = _class_names(job.source)
    root = job.source if job.source.is_dir() else job.source.parent
    for picture in sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES):
        name = picture.relative_to(job.pictures).as_posix()
        labels = _label_file(picture, root)
        if labels is None:
            yield LeftOut(name, "no label file beside it or in labels/; an empty one says that nothing is there")
            continue
        try:
            size = stored_size(ImageRef(name), job.pictures)
        except (ValueError, OSError) as error:
            yield LeftOut(name, str(error))
            continue
        boxes, num_lost = [], 0
        for number, line in enumerate(labels.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
            box = _box(line, names, size) if line.strip() else None
            if isinstance(box, str):
                num_lost += 1
                yield LeftOut(f"{labels.relative_to(root)}:{number}", box, is_part=True)
            elif box is not None:
                boxes.append(box)
        if num_lost and not boxes:
            yield LeftOut(name, NONE_LEFT)
            continue
        yield {
            "id": f"{root.resolve().name}:{name}",
            "image": {"path": name, "width": size[0], "height": size[1]},
            "question": job.question or DEFAULT_QUESTION,
            "boxes": boxes,
        }


def _box(line: str, names: dict[int, str], size: tuple[int, int]) -> dict[str, object] | str:
    """Return the box of a label line in pixels, or why there is none."""
    try:
        number, *values = (float(word) for word in line.split())
    except ValueError:
        return f"{line[:40]!r} is no class and numbers"
    if number not in names:
        return f"class {number:g} has no name"
    if len(values) == 4:
        x, y, width, height = values
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    elif len(values) >= 6 and len(values) % 2 == 0:  # an outline
        corners = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
    else:
        return f"{len(values)} numbers after the class; expected centre x, centre y, width, height"
    if not all(math.isfinite(v) and -SLACK <= v <= 1 + SLACK for v in corners):
        return "outside the picture: its numbers must be fractions of the picture's sides"
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        return "without area"
    scaled = [min(max(v, 0.0), 1.0) * side for v, side in zip(corners, size * 2, strict=True)]
    return {"label": names[int(number)], "xyxy": [round(v, 3) for v in scaled]}


def _label_file(picture: Path, root: Path) -> Path | None:
    """Return the label file of a picture: `images/` read as `labels/`, or beside it."""
    parts = list(picture.relative_to(root).with_suffix(".txt").parts)
    for index in reversed([i for i, part in enumerate(parts) if part == "images"]):
        swapped = root.joinpath(*parts[:index], "labels", *parts[index + 1 :])
        if swapped.is_file():
            return swapped
    beside = picture.with_suffix(".txt")
    return beside if beside.is_file() else None


def _class_names(source: Path) -> dict[int, str]:
    """Return the classes of a data set's YAML file, or of its classes.txt.

    Raises:
        InputError: there is none of them, or no names in it.
    """
    files = [source] if source.is_file() else sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
    names: dict[int, str] = {}
    for file in files:
        names = names or _yaml_names(file.read_text(encoding="utf-8-sig", errors="replace"))
    listed = source / "classes.txt"
    if not names and listed.is_file():
        lines = listed.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        names = {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    if not names:
        raise InputError(f"{source}: no names of classes; expected them under names: in data.yaml, or in classes.txt")
    return names


def _yaml_names(text: str) -> dict[int, str]:
    """Return what stands under `names:`, in any of the three ways in which it is usually written."""
    match = re.search(r"^names\s*:[ \t]*(.*)$", text, re.MULTILINE)
    if match is None:
        return {}
    inline = match.group(1).split(" #")[0].strip()
    names: dict[int, str] = {}
    if inline[:1] in ("[", "{"):
        whole = re.match(r"[\[{](.*?)[\]}]", text[match.start(1) :], re.DOTALL)
        for position, entry in enumerate(INLINE.finditer(whole.group(1) if whole else "")):
            names[int(entry.group(1) or position)] = _unquoted(entry.group(2))
        return names
    for line in text[match.end() + 1 :].splitlines():
        found = NAME_LINE.match(line) or re.match(r"^(-)\s*(.+?)\s*$", line)
        if found is None and line.strip() and not line.lstrip().startswith("#"):
            break
        if found is not None:
            number = found.group(1)
            names[int(number) if number and number != "-" else len(names)] = _unquoted(found.group(2))
    return names


def _unquoted(text: str) -> str:
    text = text.split(" #")[0].strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text

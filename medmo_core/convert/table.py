"""Tables in text form (CSV, TSV): a row per answer, or a row per box, which one record gathers for each picture."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from ..errors import InputError
from .outcome import DEFAULT_QUESTION, Job, LeftOut, Outcome, Record

CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = ("path", "question", "answer", *CORNERS, "label", "id", "split", "group", "licence")
KEPT = ("split", "group", "licence")
LONGEST_FIELD = 2**24


def convert_table(job: Job) -> Iterator[Outcome]:
    """Yield records of answers as they are read, and at the end those of boxes.

    A row whose corners and answer are all empty says that nothing is to be found in its picture.

    Raises:
        InputError: the file is no such table.
    """
    pointing: dict[tuple[str, str], Record] = {}
    for number, row in _rows(job):
        where = job.where(number)
        corners = [row.get(name, "") for name in CORNERS]
        is_box = any(corners) or not row.get("answer")
        question = row.get("question") or (job.question or DEFAULT_QUESTION if is_box else job.question)
        if not row.get("path") or not question:
            yield LeftOut(where, "no path" if question else "no question")
            continue
        kept = {name: row[name] for name in KEPT if row.get(name)}
        record: Record = {
            "id": row.get("id") or f"{job.source.stem}:{number}",
            "image": row["path"],
            "question": question,
            **kept,
        }
        if not is_box:
            yield {**record, "answer": row["answer"]}
            continue
        box = _box(row, corners)
        if isinstance(box, str):
            yield LeftOut(where, box, is_part=True)
            continue
        first = pointing.setdefault((row["path"], question), {**record, "boxes": []})
        if any(first.get(name) != kept.get(name) for name in KEPT):
            yield LeftOut(where, f"its {', '.join(KEPT)} differ from those of {first['id']}", is_part=True)
        elif box:
            first["boxes"].append(box)
    yield from pointing.values()


def _box(row: dict[str, str], corners: list[str]) -> Record | str:
    """Return the box of a row (empty where it has none), or why there is none."""
    if not any(corners):
        return {}
    try:
        numbers = [float(value) for value in corners]
    except ValueError:
        return f"its corners are {corners}, not four numbers"
    return {"label": row["label"], "xyxy": numbers} if row.get("label") else "no label"


def _rows(job: Job) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line at which each row ends, and its fields that are not empty."""
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with job.source.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            # Spreadsheets of many countries separate by semicolons, because their numbers have commas.
            delimiter = max("\t;,", key=first.count) if first.strip() else ","
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            missing = [name for name in ("path", "question", "answer") if name not in header and job.question is None]
            is_pointing = "path" in header and set(CORNERS) <= set(header) and "label" in header
            if "path" not in header or (missing and not is_pointing):
                raise InputError(
                    f"{job.source}: its first line names {', '.join(header) or 'nothing'}; expected columns of "
                    f"{', '.join(COLUMNS)}: path with question and answer, or with {', '.join(CORNERS)} and label"
                )
            for values in reader:
                if values:
                    row = {name: value.strip() for name, value in zip(header, values, strict=False)}
                    if delimiter == ";":
                        row |= {name: row[name].replace(",", ".") for name in CORNERS if name in row}
                    yield reader.line_num, row if len(values) <= len(header) else {}
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{job.source}: cannot be read as a table in UTF-8 ({error})") from None

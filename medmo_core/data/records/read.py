"""Reader of a parsed JSON object as a `Sample`, which notes every fault on the way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...boxes.boxes import box_fault, unit_mistake
from .faults import Fault, FieldReader, RecordError, is_integer, is_number, shown, text_faults
from .sample import (
    ANSWER_TYPES,
    PLANES,
    SPLITS,
    STATUSES,
    TASKS,
    Answer,
    BoxAnnotation,
    Fact,
    ImageRef,
    Message,
    Sample,
    record_fields,
)
from .shorthand import SHORT_FIELDS, expand

WINDOW_FORM = "a preset's name, [center, width], the index of a file's own window, or three of these"


def sample_from_json(values: Any, *, file: str = "record", line: int = 0) -> Sample:
    """Read a record, in the full form or a short one (see `sample.py`).

    Args:
        values: the parsed JSON object.
        file: name of the file, for messages.
        line: number of the record, for messages and in the id of a record without one.

    Raises:
        RecordError: naming file, line, field, what was expected and the fix.
    """
    faults: list[Fault] = []
    sample = read_sample(values, faults, default_id=f"{Path(file).stem}:{line}")
    if sample is None or faults:
        raise RecordError([fault.at(file, line) for fault in faults])
    return sample


def read_sample(values: Any, faults: list[Fault], *, default_id: str) -> Sample | None:
    """Read a record and note every fault; None when it is no record at all."""
    unwritable = text_faults(values)
    if unwritable:
        faults += unwritable
        return None
    if not isinstance(values, dict):
        faults.append(Fault("", f"the line is {shown(values)}", "a JSON object", "write one {...} per line"))
        return None
    values = expand(values, faults)
    if "system" in values:
        faults.append(Fault("system", "is given without a question", "question and system", "write a system message"))
    names = [field.name for field in record_fields(Sample)]
    reader = FieldReader(values, faults, "", [*names, *SHORT_FIELDS])
    sample = Sample(
        id=reader.text("id", required="id" in values) or default_id,
        task=reader.option("task", TASKS, required=True) or "",
        images=reader.each("images", lambda v, path: _read_image(v, faults, path)),
        messages=reader.each("messages", lambda v, path: _read_message(v, faults, path)),
        boxes=reader.each("boxes", lambda v, path: _read_box(v, faults, path)),
        answer=_read_answer(values["answer"], faults, "answer") if reader.has("answer") else None,
        facts=reader.each("facts", lambda v, path: _read_fact(v, faults, path)),
        split=reader.option("split", SPLITS),
        group=reader.text("group", required=reader.has("group"), fix="leave it out where it is not known"),
        licence=reader.text("licence"),
        provenance=values.get("provenance"),
    )
    if sample.answer is not None and sample.answer.type == "boxes" and not reader.has("boxes"):
        reader.fault("boxes", "is missing, and the answer is boxes", "a list", "write [] where nothing is to be found")
    if not faults:  # a relation between fields that could not be read says nothing
        _check_relations(sample, faults)
    return sample


def box_faults(sample: Sample) -> list[Fault]:
    """Return the faults of boxes in images of known size."""
    faults = []
    for index, box in enumerate(sample.boxes):
        size = sample.images[box.image].size if box.image < len(sample.images) else None
        problem = size and (box_fault(box.xyxy_px, "pixel", size) or unit_mistake(box.xyxy_px, "pixel", size))
        if problem:
            what, _, fix = problem.partition("; ")
            faults.append(Fault(f"boxes[{index}].xyxy_px", f"({box.label}) {what}", "", fix))
    return faults


def _check_relations(sample: Sample, faults: list[Fault]) -> None:
    """Check what several fields say together."""
    placeholders = sum(part.get("type") == "image" for part in _parts(sample))
    if placeholders != len(sample.images):
        faults.append(
            Fault(
                "messages",
                f"{len(sample.images)} image(s) but {placeholders} image placeholder(s)",
                "one placeholder per image",
                'write one {"type": "image"} part per image into the content of the user turn, or drop the rest',
            )
        )
    roles = [message["role"] for message in sample.messages]
    if not roles or "user" not in roles:
        faults.append(Fault("messages", "no user turn", "a question or an instruction", "add a user turn"))
    elif roles[-1] != "assistant" and sample.answer is None:
        faults.append(
            Fault("answer", "nothing to learn", "an assistant turn at the end, or an answer", "add one of the two")
        )
    if sample.answer is not None and sample.answer.type == "boxes" and not sample.images:
        faults.append(Fault("images", "the answer is boxes but there is no image", "an image", "add it"))
    elif sample.answer is not None and sample.answer.image is not None and sample.answer.image >= len(sample.images):
        expected = f"an index below {len(sample.images)}"
        faults.append(Fault("answer.image", f"is {sample.answer.image}", expected, "count from 0"))
    named = [i for part in _parts(sample) if part.get("type") == "boxes" for i in part["boxes"]]
    if named and max(named) >= len(sample.boxes):
        expected = f"an index below {len(sample.boxes)}"
        faults.append(Fault("messages", f"a turn names box {max(named)}", expected, "count from 0, or add the box"))
    for index, box in enumerate(sample.boxes):
        if box.image >= len(sample.images):
            expected = f"an index below {len(sample.images)}"
            faults.append(Fault(f"boxes[{index}].image", f"is {box.image}", expected, "count from 0"))
    faults += box_faults(sample)


def _parts(sample: Sample) -> list[dict[str, Any]]:
    """Return the parts of all turns that are written as lists."""
    lists = [m["content"] for m in sample.messages if not isinstance(m["content"], str)]
    return [part for content in lists for part in content if isinstance(part, dict)]


def _read_image(value: Any, faults: list[Fault], path: str) -> ImageRef | None:
    before = len(faults)
    reader = FieldReader(value, faults, path, [field.name for field in record_fields(ImageRef)])
    crop = reader.row("crop", 4, whole=True)
    if crop is not None and not (crop[0] < crop[2] and crop[1] < crop[3]):
        reader.fault("crop", f"is {list(crop)}", "[x0, y0, x1, y1] with x0 < x1 and y0 < y1", "reorder the corners")
    width, height = reader.integer("width", least=1), reader.integer("height", least=1)
    if crop is not None:
        cut = (crop[2] - crop[0], crop[3] - crop[1])
        if (width, height) not in ((None, None), cut):
            expected = f"{cut[0]}x{cut[1]}"
            reader.fault("width", f"{width}x{height} contradicts the crop", expected, "state the size after the crop")
        width, height = cut
    elif (width is None) != (height is None) and reader.has("width") != reader.has("height"):
        missing = "height" if reader.has("width") else "width"
        reader.fault(missing, "is missing", "width and height, or neither", f"add the {missing}, or leave both out")
    spacing = reader.row("spacing_mm", 2)
    if spacing is not None and min(spacing) <= 0:
        reader.fault("spacing_mm", f"is {list(spacing)}", "two numbers above 0", "correct it, or leave it out")
    window = reader.values.get("window")
    if window is not None and not _is_window(window):
        reader.fault("window", f"is {shown(window)}", WINDOW_FORM, "write [40, 400], or leave it out")
    digest = reader.text("sha256")
    if digest is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        reader.fault("sha256", f"is {shown(digest)}", "64 hexadecimal digits", "write what sha256sum says of the file")
    image = ImageRef(
        path=reader.text("path", required=True) or "",
        width=width,
        height=height,
        crop=crop,  # type: ignore[arg-type]
        frame=reader.integer("frame"),
        slice_index=reader.integer("slice_index"),
        plane=reader.option("plane", PLANES) or "axial",
        window=_tuples(window),
        spacing_mm=spacing,  # type: ignore[arg-type]
        modality=reader.text("modality"),
        laterality_display=reader.text("laterality_display"),
        sha256=digest,
    )
    return image if len(faults) == before else None


def _read_message(value: Any, faults: list[Fault], path: str) -> Message | None:
    before = len(faults)
    reader = FieldReader(value, faults, path, ("role", "content"))
    role = reader.option("role", ("system", "user", "assistant"), required=True)
    if role == "system" and path != "messages[0]":
        reader.fault("role", "a system turn in the middle", "user or assistant", "move it to the first message")
    content = reader.values.get("content")
    if not isinstance(content, str | list):
        reader.fault("content", f"is {shown(content)}", "a text or a list of parts", 'write [{"type": "text", ...}]')
    for index, part in enumerate(content if isinstance(content, list) else []):
        inner = FieldReader(part, faults, f"{path}.content[{index}]", ("type", "text", "boxes"))
        kind = inner.option("type", ("text", "image", "boxes"), required=True)
        if kind == "text":
            inner.text("text", required=part.get("text") != "")
        elif kind == "image" and role != "user":
            inner.fault("type", f"an image in a turn of the {role}", "text", "move it to the user's turn")
        elif kind == "boxes":
            indices = part.get("boxes")
            if role == "system":
                inner.fault("type", "boxes in a turn of the system", "text", "move them to another turn")
            elif not isinstance(indices, list) or not all(type(i) is int and i >= 0 for i in indices):
                expected = "indices into the sample's boxes"
                inner.fault("boxes", f"is {shown(indices)}", expected, "write [0, 2], or [] for none")
    return {"role": role, "content": content} if len(faults) == before else None


def _read_box(value: Any, faults: list[Fault], path: str) -> BoxAnnotation | None:
    before = len(faults)
    reader = FieldReader(value, faults, path, [field.name for field in record_fields(BoxAnnotation)])
    row = reader.row("xyxy_px", 4, required=True)
    if row is not None and (row[0] > row[2] or row[1] > row[3]):
        problem, _, fix = (box_fault(row, "pixel", (1, 1)) or "").partition("; ")
        reader.fault("xyxy_px", problem, "[x1, y1, x2, y2] with x1 <= x2 and y1 <= y2", fix)
    label = reader.text("label", required=True)
    image = reader.integer("image")
    source, code = reader.option("source", ("expert", "silver", "derived", "curated")), reader.text("code")
    if len(faults) > before or row is None:
        return None
    x1, y1, x2, y2 = (float(v) for v in row)
    return BoxAnnotation(label or "", (x1, y1, x2, y2), image or 0, source, code)


def _read_answer(value: Any, faults: list[Fault], path: str) -> Answer | None:
    before = len(faults)
    reader = FieldReader(value, faults, path, [field.name for field in record_fields(Answer)])
    kind = reader.option("type", ANSWER_TYPES, required=True)
    text = reader.text("value", required=kind != "boxes")
    choices, image = reader.texts("choices"), reader.integer("image")
    if image is not None and kind != "boxes":
        reader.fault("image", f"is given with an answer of type {kind}", "none", "remove it, or use type 'boxes'")
    if kind == "yesno" and text is not None and text.lower() not in ("yes", "no"):
        reader.fault("value", f"is {text!r}", "yes or no", "use type 'open' for other answers")
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    if kind == "choice" and text is not None and text not in (*choices, *letters):
        reader.fault("value", f"is {text!r}", "one of the choices, or its letter", "correct it, or add it to choices")
    return Answer(kind or "", text, choices, image) if len(faults) == before else None


def _read_fact(value: Any, faults: list[Fault], path: str) -> Fact | None:
    before = len(faults)
    reader = FieldReader(value, faults, path, [field.name for field in record_fields(Fact)])
    fact = Fact(
        finding=reader.text("finding", required=True) or "",
        status=reader.option("status", STATUSES) or "present",
        site=reader.text("site"),
        side=reader.text("side"),
        size_mm=reader.number("size_mm"),
    )
    if fact.size_mm is not None and fact.size_mm <= 0:
        reader.fault("size_mm", f"is {fact.size_mm:g}", "a number above 0", "correct it, or leave it out")
    return fact if len(faults) == before else None


def _is_window(value: Any) -> bool:
    if isinstance(value, list) and len(value) == 3:
        return all(not (isinstance(v, list) and len(v) == 3) and _is_window(v) for v in value)
    is_range = isinstance(value, list) and len(value) == 2 and all(is_number(v) for v in value)
    return isinstance(value, str) or is_integer(value) or is_range


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value

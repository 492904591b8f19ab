"""The ways models write boxes, as text: every grammar prints what `recognise` recognises. No image sizes.

A row is (label, four numbers), the numbers in x1, y1, x2, y2 order whatever order the text uses. `boxes.py` gives the
numbers a frame.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

Corners = tuple[float, ...]
Row = tuple[str, Corners]

DIFFERENCE = "Difference detected"
_LINE_END = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_LABEL_EDGE = " \t,;:[]"


def clean_label(text: str) -> str:
    """The last line of a text without what surrounds a label: list marks, colons, brackets, tags."""
    lines = [line for line in _LINE_END.split(text) if line.strip(_LABEL_EDGE)]
    if not lines:
        return ""
    label = re.sub(r"^\s*[-*\u2022]+\s", "", lines[-1].strip().strip(_LABEL_EDGE))
    return re.sub(r"[\[\]<>{}|`]", "", label).strip().strip(_LABEL_EDGE)


@dataclass(frozen=True)
class Grammar:
    """One way to write boxes.

    Attributes:
        name: key in `GRAMMARS`.
        print: rows and the name of their frame -> text; JSON also takes the number of each row's image.
        frame: frame its users mean unless they say otherwise.
        labels: `any` text, one `line` of text without brackets, or `none` at all.
        also: grammars whose text is taken for this one's too.
        bins: what the full width of the image is written as, in frame `norm1000`.
    """

    name: str
    print: Callable[..., str]
    frame: str = "norm1000"
    labels: str = "any"
    also: tuple[str, ...] = ()
    bins: int = 1000

    @property
    def image_place(self) -> str | None:
        """Where the number of a box's image stands: a separate `key`, before the `label`, or nowhere (None)."""
        return {"any": "key", "line": "label", "none": None}[self.labels]

    def label_fault(self, label: str) -> str | None:
        """Say why this grammar cannot carry a label; None when it can."""
        if self.labels == "none" and label:
            return f"grammar {self.name!r} has no place for labels, but a box is called {label!r}"
        if self.labels == "line" and label and clean_label(label) != label:
            return (
                f"grammar {self.name!r} cannot write label {label!r}: use one line without brackets, tags or end marks"
            )
        return None


def _numbers_text(row: Corners, separator: str = ", ") -> str:
    return separator.join(str(value) for value in row)


def _list_text(row: Corners) -> str:
    return f"[{_numbers_text(row)}]"


def _lists_text(rows: Sequence[Row]) -> str:
    return "[" + ", ".join(_list_text(row) for _, row in rows) + "]"


def _runs(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Neighbours with one label share one line, so that the order of the boxes survives."""
    for label, run in groupby(rows, key=lambda row: row[0]):
        yield label, list(run)


def _json_text(rows: Sequence[Row], key: str, images: Sequence[int], order: Sequence[int] = (0, 1, 2, 3)) -> str:
    objects = [{key: [row[i] for i in order], "label": label} for label, row in rows]
    return json.dumps(_with_images(objects, images), ensure_ascii=False)


def _with_images(objects: list[dict[str, Any]], images: Sequence[int]) -> list[dict[str, Any]]:
    return [{"image": n, **item} for n, item in zip(images, objects, strict=True)] if images else objects


def _fenced(text: str) -> str:
    return f"```json\n{text}\n```"


def _print_slake(rows: Sequence[Row], frame: str, images: Sequence[int] = ()) -> str:
    detections = _with_images([{"label": label, "bbox": list(row)} for label, row in rows], images)
    return json.dumps({"box_format": frame, "detections": detections}, ensure_ascii=False)


def _print_medmo_box(rows: Sequence[Row], frame: str) -> str:
    return "\n".join(f"{label} <box>{_lists_text(run)}</box>".lstrip() for label, run in _runs(rows)) or "<box>[]</box>"


def _print_label_list(rows: Sequence[Row], frame: str) -> str:
    lines = [(f"{label}: " if label else "") + _lists_text(run) for label, run in _runs(rows)]
    return "\n".join(lines) or "None found."


def _print_class_list(rows: Sequence[Row], frame: str) -> str:
    lines = [(f"{label}: " if label else "") + _list_text(row) for label, row in rows]
    return "\n".join(lines) or "No disease detected."


def _print_bare(rows: Sequence[Row], frame: str) -> str:
    return _list_text(rows[0][1]) if len(rows) == 1 else _lists_text(rows)


def _print_answer(lines: Sequence[str]) -> str:
    return "<answer>\n" + "\n".join(lines) + "\n</answer>" if lines else "<answer></answer>"


def _print_answer_box(rows: Sequence[Row], frame: str) -> str:
    return _print_answer([f"{label}: <box> {_numbers_text(row)} </box>" for label, row in rows])


def _print_answer_cells(rows: Sequence[Row], frame: str) -> str:
    return _print_answer([f"{label}: <box> {_lists_text(run)[1:-1]} </box>" for label, run in _runs(rows)])


def _print_qwen2(rows: Sequence[Row], frame: str) -> str:
    return "".join(
        f"<|object_ref_start|>{label}<|object_ref_end|><|box_start|>({a},{b}),({c},{d})<|box_end|>"
        for label, (a, b, c, d) in rows
    ) or "[]"  # fmt: skip


def _print_qwen(rows: Sequence[Row], frame: str) -> str:
    return "".join(f"<ref>{label}</ref><box>({a},{b}),({c},{d})</box>" for label, (a, b, c, d) in rows) or "[]"


def _print_minicpm(rows: Sequence[Row], frame: str) -> str:
    return "".join(f"<ref>{label}</ref><box>{_numbers_text(row, ' ')}</box>" for label, row in rows) or "[]"


def _print_visual_rft(rows: Sequence[Row], frame: str) -> str:
    return (
        "<answer>["
        + ", ".join(f"{{'Position': {_list_text(row)}, 'Confidence': 1.0}}" for _, row in rows)
        + "]</answer>"
    )


def _print_rex(rows: Sequence[Row], frame: str) -> str:
    return "".join(
        f"<|object_ref_start|>{label}<|object_ref_end|><|box_start|>"
        + ",".join("".join(f"<{value}>" for value in row) for _, row in run)
        + "<|box_end|>"
        for label, run in _runs(rows)
    ) or "[]"  # fmt: skip


Y_FIRST = (1, 0, 3, 2)  # its own inverse

GRAMMARS: dict[str, Grammar] = {
    grammar.name: grammar
    for grammar in (
        Grammar("qwen3_vl_json", lambda rows, frame, images=(): _json_text(rows, "bbox_2d", images)),
        Grammar(
            "qwen3_vl_json_fenced",
            lambda rows, frame, images=(): _fenced(_json_text(rows, "bbox_2d", images)),
            also=("qwen3_vl_json",),
        ),
        Grammar("medmo_box", _print_medmo_box, labels="line", also=("medmo_answer_cells",)),
        Grammar("medmo_label_list", _print_label_list, labels="line", also=("medmo_class_list", "medmo_bare_list")),
        Grammar("medmo_class_list", _print_class_list, labels="line", also=("medmo_label_list", "medmo_bare_list")),
        Grammar("medmo_bare_list", _print_bare, labels="none"),
        Grammar("medmo_difference", lambda rows, frame: f"{DIFFERENCE}: {_lists_text(rows)}", labels="none"),
        Grammar("slake_json", _print_slake, frame="pixel"),
        Grammar("medmo_answer_box", _print_answer_box, frame="pixel", labels="line", also=("medmo_answer_cells",)),
        Grammar(
            "medmo_answer_cells",
            _print_answer_cells,
            frame="pixel",
            labels="line",
            also=("medmo_box", "medmo_answer_box"),
        ),
        Grammar("qwen2_vl_tokens", _print_qwen2, labels="line"),
        Grammar("qwen_vl_tags", _print_qwen, labels="line"),
        Grammar("minicpm_box", _print_minicpm, labels="line"),
        Grammar("medgemma_json", lambda rows, frame, images=(): _fenced(_json_text(rows, "box_2d", images, Y_FIRST))),
        Grammar("visual_rft", _print_visual_rft, labels="none"),
        Grammar("rex_omni", _print_rex, labels="line", bins=999),
    )
}

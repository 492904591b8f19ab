"""Boxes recognised in what models write, in every grammar of `grammars`. Pure text, no image sizes.

Recognition is one linear pass over text of any origin and never raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .grammars import DIFFERENCE, GRAMMARS, Y_FIRST, Corners, Row, clean_label

MAX_TEXT = 100_000  # characters read; an answer is never that long
MAX_UNREADABLE = 64  # objects tried and given up; bounds the work on hostile text
NAMED_FRAMES = {"pixel": "pixel", "pixels": "pixel", "norm1000": "norm1000", "unit": "unit"}


@dataclass
class Recognised:
    """Result of recognition: rows, the grammar's name, faults, and the frame that the text itself named.

    `images` maps the index of a row to the value of its key `image`, where it has one.
    """

    rows: list[Row] = field(default_factory=list)
    grammar: str | None = None
    errors: list[str] = field(default_factory=list)
    named_frame: str | None = None
    images: dict[int, Any] = field(default_factory=dict)


_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_SEPARATOR = re.compile(r"[\s,;()]+")
_INNER_LIST = re.compile(r"\[([^\[\]]*)\]")
_FLAT_OBJECT = re.compile(r"\{[^{}]{0,4000}\}")
_PAIR = re.compile(r"""['"](\w{1,40})['"]\s{0,20}:\s{0,20}(?:\[([^\[\]]*)\]|'([^']*)'|"([^"]*)")""")
_IMAGE_NUMBER = re.compile(r"""['"]image['"]\s{0,20}:\s{0,20}(\d{1,4})\b""")
_FENCE = re.compile(r"```[A-Za-z]{0,10}\s?")
_REX_BIN = re.compile(r"<(\d{1,4})>")
_REF = re.compile(r"(?:<ref>|<\|object_ref_start\|>)([^<]*)(?:</ref>|<\|object_ref_end\|>)\s*$")
_NAMED_FRAME = re.compile(r"""['"]box_format['"]\s{0,20}:\s{0,20}['"](\w{1,20})['"]""")
_NONE_SENTENCE = re.compile(
    r"(?:(?:there|it) (?:is|are|has) )?(?:no|none|nothing|not)\b[^\[\]<>{}.!?\n]{0,160}[.!]?", re.IGNORECASE
)
_HEDGE = re.compile(r"\b(?:but|however|except|only)\b", re.IGNORECASE)
_BOX_TAGS = (("<|box_start|>", "<|box_end|>"), ("<box>", "</box>"))
_CORNER_KEYS = {"bbox_2d": "qwen3_vl_json", "bbox": "slake_json", "box_2d": "medgemma_json", "Position": "visual_rft"}
PLAIN_GRAMMAR = "qwen3_vl_json"
_PLAIN_NUMBER = r"(?!0[0-9])[0-9]{1,9}+"
_PLAIN_BOX = re.compile(
    rf'(?:\[|, )\{{"bbox_2d": \[({", ".join([_PLAIN_NUMBER] * 4)})\], "label": "([^"\\\x00-\x1f]*+)"\}}'
)
_LABEL_KEYS = ("label", "class", "category", "name")


def recognise(text: str, grammar: str = "auto") -> Recognised:
    """Find the boxes in a text and the grammar they are written in.

    Args:
        text: anything.
        grammar: key of `GRAMMARS` to expect, or `auto`. Boxes in another grammar are still returned, with an error.
    """
    found = _recognise_any(text)
    if len(text) > MAX_TEXT:
        found.errors.append(f"only the first {MAX_TEXT} of {len(text)} characters were read")
    if found.grammar is None:
        if not found.errors:
            found.errors.append("no boxes found, and no statement that there are none")
        return found
    if grammar == "auto":
        return found
    empty = not found.rows and not found.errors  # an explicit "no box" says the same in every grammar
    if empty or found.grammar == grammar or found.grammar in GRAMMARS[grammar].also:
        found.grammar = grammar
    else:
        found.errors.append(f"written as {found.grammar}, expected {grammar}")
    if grammar.startswith("medmo_answer") and "<answer>" not in text:
        found.errors.append("the answer is not inside <answer> tags")
    return found


def _recognise_any(text: str) -> Recognised:
    text = text[:MAX_TEXT].strip()
    # A label may hold any text, even tags: take whole JSON as it is before unwrapping anything.
    whole = text.removeprefix("```json").removesuffix("```").strip() if text.startswith("```json") else text
    if whole[:1] in ("[", "{") and _loads(whole) is not None:
        return _recognise_body(whole)
    body, errors, wrapped = _unwrap(text)
    found = _recognise_body(body)
    if found.grammar is None and wrapped and not body.strip():
        found.grammar = "medmo_answer_box"  # empty answer tags: nothing there
    found.errors[:0] = errors
    return found


def _unwrap(text: str) -> tuple[str, list[str], bool]:
    """Take off thinking, answer tags and a code fence; say whether there was a whole pair of answer tags."""
    errors: list[str] = []
    wrapped = False
    if "</think>" in text:
        text = text[text.rindex("</think>") + len("</think>") :]
    elif "<think>" in text:
        return "", ["the text ends inside <think>"], False
    if "<answer>" in text:
        text = text[text.rindex("<answer>") + len("<answer>") :]
        wrapped = "</answer>" in text
        if not wrapped:
            errors.append("the text ends inside <answer>")
        text = text.partition("</answer>")[0]
    opening = _FENCE.search(text)
    if opening:
        text = text[opening.end() :].partition("```")[0]
    return text, errors, wrapped


def _recognise_body(text: str) -> Recognised:
    if any(f'"{key}"' in text or f"'{key}'" in text for key in (*_CORNER_KEYS, "detections")):
        return _recognise_json(text)
    for opening, closing in _BOX_TAGS:
        if opening in text:
            return _recognise_tags(text, opening, closing)
    bare = text.strip()
    if bare in ("[]", "[ ]", "[[]]"):
        return Recognised(grammar="qwen3_vl_json")
    if "[" in text:
        return _recognise_lists(text)
    if len(bare) <= 200 and _NONE_SENTENCE.fullmatch(bare) and not _HEDGE.search(bare):
        return Recognised(grammar="medmo_class_list")
    return Recognised()


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def plain_list(text: Any) -> tuple[str, tuple[str, ...]] | None:
    """Read a text that is a list of boxes just as `print_boxes` writes it in `PLAIN_GRAMMAR`, and nothing else.

    Finds what `recognise` finds, in a small part of its time.

    Args:
        text: anything.

    Returns:
        All corners, four whole numbers a box, separated by ", ", and the label of each box; None where the text is no
        such list and `recognise` has to say what it is.
    """
    if not isinstance(text, str) or text[-1:] != "]" or len(text) > MAX_TEXT:
        return None
    boxes = _PLAIN_BOX.findall(text)
    if not boxes:
        return None
    corners, labels = zip(*boxes, strict=True)
    numbers, words = ", ".join(corners), "".join(labels)
    if "detections" in words or "box_format" in words:  # in quotes they name another grammar
        return None
    # As long as the list of these boxes: nothing stands before, between or behind them.
    expected = len(numbers) + len(words) + len('{"bbox_2d": [], "label": ""}') * len(boxes) + len("[]")
    return (numbers, labels) if len(text) == expected else None


def _recognise_json(text: str) -> Recognised:
    found = Recognised()
    named = _NAMED_FRAME.search(text)
    if named:
        found.named_frame = named.group(1)
        if found.named_frame not in NAMED_FRAMES:
            found.errors.append(f"unknown box_format {found.named_frame!r}")
    if '"detections"' in text or "'detections'" in text:
        found.grammar = "slake_json"
    for item in _objects(text, found.errors):
        _take_object(item, found)
    start = text.find("[")
    if -1 < start < text.find("{") and "]" not in text[text.rfind("}") :] and not found.errors:
        found.errors.append("the list is cut off: no closing bracket")
    if found.grammar is None:
        found.errors.append("no object with readable corners")
    return found


def _objects(text: str, errors: list[str]) -> Iterator[dict[str, Any]]:
    """Read one object after another; what cannot be read is named in `errors`, the rest is kept."""
    decoder = json.JSONDecoder()
    position, unreadable = text.find("{"), 0
    while position >= 0 and unreadable < MAX_UNREADABLE:
        try:
            item, end = decoder.raw_decode(text, position)
            yield from item["detections"] if isinstance(item.get("detections"), list) else [item]
            position = text.find("{", end)
            continue
        except (ValueError, RecursionError):
            pass
        flat = _FLAT_OBJECT.match(text, position)
        lenient = _lenient_object(flat.group()) if flat else {}
        if flat and lenient:
            yield lenient
            position = text.find("{", flat.end())
            continue
        unreadable += 1
        line = text.count("\n", 0, position) + 1
        errors.append(f"the object at line {line} is cut off or is not JSON")
        position = text.find("{", position + 1)


def _lenient_object(text: str) -> dict[str, Any]:
    """Read an object with single quotes, as Python prints it."""
    values: dict[str, Any] = {}
    for key, numbers, single, double in _PAIR.findall(text):
        values[key] = _numbers(numbers) if numbers else single or double
    image = _IMAGE_NUMBER.search(text)
    return values | {"image": int(image.group(1))} if image else values


def _take_object(item: Any, found: Recognised) -> None:
    key = next((key for key in _CORNER_KEYS if isinstance(item, dict) and key in item), None)
    if key is None:
        found.errors.append(f"an object without corners ({', '.join(_CORNER_KEYS)})")
        return
    found.grammar = found.grammar or _CORNER_KEYS[key]
    label = next((item[k] for k in _LABEL_KEYS if isinstance(item.get(k), str)), "")
    value = item[key]
    nested = isinstance(value, list) and value and all(isinstance(v, list) for v in value)
    for corners in value if nested else [value]:
        row = _json_corners(corners)
        if row is None:
            found.errors.append(f"{label or 'a box'}: {key} is not a list of four numbers")
        else:
            if "image" in item:
                found.images[len(found.rows)] = item["image"]
            found.rows.append((label, tuple(row[i] for i in Y_FIRST) if key == "box_2d" else row))


def _json_corners(value: Any) -> Corners | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        return None
    try:
        return tuple(float(v) for v in value)
    except OverflowError:
        return None


def _numbers(text: str) -> list[float] | None:
    """Read numbers separated by commas, spaces or parentheses; None where anything else stands among them."""
    words = [word for word in _SEPARATOR.split(text) if word]
    return [float(word) for word in words] if all(_NUMBER.fullmatch(word) for word in words) else None


def _recognise_tags(text: str, opening: str, closing: str) -> Recognised:
    found = Recognised()
    position = text.find(opening)
    previous_end = 0
    while position >= 0:
        label = _label_before(text[previous_end:position])
        content_start = position + len(opening)
        following = text.find(opening, content_start)
        limit = following if following >= 0 else len(text)
        content_end = text.find(closing, content_start, limit)
        closed = content_end >= 0
        if not closed:
            content_end = limit
            found.errors.append(f"{label or 'a box'}: no {closing} follows")
        _take_content(text[content_start:content_end], label, opening, found)
        previous_end = content_end + len(closing) if closed else content_end
        position = text.find(opening, previous_end)
    return found


def _take_content(content: str, label: str, opening: str, found: Recognised) -> None:
    """Read the boxes between one pair of tags."""
    bins = _REX_BIN.findall(content)
    if bins:
        kind = "rex_omni"
        groups: list[list[float] | None] = [
            [int(b) * 1000 / 999 for b in bins[i : i + 4]] for i in range(0, len(bins), 4)
        ]
    elif "[" in content:
        kind = "medmo_box" if "[[" in content.replace(" ", "") or content.strip() == "[]" else "medmo_answer_cells"
        groups = [_numbers(inner) for inner in _INNER_LIST.findall(content) if inner.strip()]
        if content.count("[") != content.count("]"):
            found.errors.append(f"{label or 'a box'}: the list of boxes is cut off")
    else:
        kind = "qwen_vl_tags" if "(" in content else "medmo_answer_box" if "," in content else "minicpm_box"
        numbers = _numbers(content)
        groups = [None] if numbers is None else [numbers[i : i + 4] for i in range(0, len(numbers), 4)]
    if opening == "<|box_start|>" and kind != "rex_omni":
        kind = "qwen2_vl_tokens"
    found.grammar = found.grammar or kind
    for group in groups:
        if group is None or len(group) != 4:
            found.errors.append(f"{label or 'a box'}: not four numbers")
        else:
            found.rows.append((label, tuple(group)))


def _label_before(text: str) -> str:
    tagged = _REF.search(text)
    return clean_label(tagged.group(1) if tagged else text)


def _recognise_lists(text: str) -> Recognised:
    """Read `Label: [[..], [..]]`, `label: [..]` line by line, and bare lists."""
    found = Recognised()
    previous_end, label, labelled = 0, "", False
    for match in _INNER_LIST.finditer(text):
        gap = text[previous_end : match.start()]
        previous_end = match.end()
        own_label = clean_label(gap)
        if own_label or not gap.lstrip().startswith(","):  # after a comma the list goes on under its label
            label = own_label
        labelled = labelled or bool(label)
        if not match.group(1).strip():
            found.grammar = found.grammar or "medmo_label_list"
            continue
        group = _numbers(match.group(1))
        if group is None or len(group) != 4:
            found.errors.append(f"{label or 'a list'}: not four numbers")
            continue
        found.rows.append((label, tuple(group)))
        found.grammar = found.grammar or ("medmo_label_list" if labelled else "medmo_bare_list")
    if text.count("[") != text.count("]"):
        found.errors.append("the list of boxes is cut off")
    if found.rows and all(label.lower() == DIFFERENCE.lower() for label, _ in found.rows):
        found.grammar, found.rows = "medmo_difference", [("", row) for _, row in found.rows]
    return found

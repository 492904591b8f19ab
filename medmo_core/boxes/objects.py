"""Boxes in JSON objects, and in objects as Python prints them, anywhere in a text; and what recognition returns.

Every box of an object counts, also one that stands under a second key, in an object inside it, or in a bare list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_NUMBER = 64  # characters of a number; a longer one is none
MAX_UNREADABLE = 64  # objects tried and given up; with more nothing is read, which bounds the work on hostile text
NAMED_FRAMES = {"pixel": "pixel", "pixels": "pixel", "norm1000": "norm1000", "unit": "unit"}
_CORNER_KEYS = {"bbox_2d": "qwen3_vl_json", "bbox": "slake_json", "box_2d": "medgemma_json", "Position": "visual_rft"}
_LABEL_KEYS = ("label", "class", "category", "name")
_QUOTED = tuple(f"{quote}{key}{quote}" for key in (*_CORNER_KEYS, "detections") for quote in "\"'")
_FLAT_OBJECT = re.compile(r"\{[^{}]{0,4000}\}")
_PAIR = re.compile(r"""['"](\w{1,40})['"]\s{0,20}:\s{0,20}(?:\[([^\[\]]*)\]|'([^']*)'|"([^"]*)")""")
_OWN_CORNERS = re.compile(rf"""['"](?:{"|".join(_CORNER_KEYS)})['"]\s{{0,20}}:\s{{0,20}}\[[^\[\]]*""")
_IMAGE_NUMBER = re.compile(r"""['"]image['"]\s{0,20}:\s{0,20}(\d{1,4})\b""")
_NUMBER = re.compile(
    r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?(?:nan|inf|infinity)", re.ASCII | re.IGNORECASE
)
_SEPARATOR = re.compile(r"[\s,;()]+")
_NAMED_FRAME = re.compile(r"""['"]box_format['"]\s{0,20}:\s{0,20}['"](\w{1,20})['"]""")


@dataclass
class Recognised:
    """Result of recognition: rows, the grammar's name, faults, and the frame that the text itself named.

    `images` maps the index of a row to the value of its key `image`, where it has one.
    """

    rows: list[tuple[str, tuple[float, ...]]] = field(default_factory=list)
    grammar: str | None = None
    errors: list[str] = field(default_factory=list)
    named_frame: str | None = None
    images: dict[int, Any] = field(default_factory=dict)

    def add(self, other: Recognised) -> None:
        """Take what was found in another part of the text; the grammar stays the first one that names boxes."""
        self.images |= {len(self.rows) + row: image for row, image in other.images.items()}
        if self.grammar is None or (other.rows and not self.rows):
            self.grammar = other.grammar
        self.rows += other.rows
        self.errors += other.errors
        self.take_frame(other.named_frame)

    def take_frame(self, name: Any) -> None:
        """Take a frame that the text names."""
        if name in (None, self.named_frame):
            return
        if not isinstance(name, str) or name not in NAMED_FRAMES:
            self.errors.append(f"unknown box_format {str(name)[:MAX_NUMBER]!r}")
        elif self.named_frame is None:
            self.named_frame = name
        else:
            self.errors.append(f"box_format is {self.named_frame!r} and {name!r}")


def shown(label: str, nameless: str = "a box") -> str:
    """Return a label as messages show it, `nameless` where it is empty."""
    return (label or nameless) if len(label) <= MAX_NUMBER else f"{label[:MAX_NUMBER]}..."


def numbers_of(text: str) -> list[float] | None:
    """Read numbers separated by commas, spaces or parentheses; None where anything else stands among them."""
    words = [word for word in _SEPARATOR.split(text) if word]
    good = all(len(word) <= MAX_NUMBER and _NUMBER.fullmatch(word) for word in words)
    return [float(word) for word in words] if good else None


def holds_objects(text: str) -> bool:
    """Say whether a text has an object and a key of boxes."""
    return "{" in text and any(key in text for key in _QUOTED)


def load(text: str) -> Any:
    """Return JSON as Python values; None where the text is none."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def read_objects(text: str) -> tuple[Recognised, str]:
    """Return the boxes of all objects, and the text around them with `{}` where an object stood."""
    found = Recognised()
    around: list[str] = []
    done = unreadable = 0
    for item, start, end in _objects(text):
        around.append(text[done:start])
        done = end
        if item is not None:
            _take_object(item, found)
            continue
        unreadable += 1
        if unreadable > MAX_UNREADABLE:
            return Recognised(
                errors=[f"more than {MAX_UNREADABLE} objects are cut off or are no JSON: none is read"]
            ), ""
        broken = text[start:end]
        found.errors.append(f"the object at line {text.count(chr(10), 0, start) + 1} is cut off or is not JSON")
        named = _NAMED_FRAME.search(broken)
        if named:
            found.take_frame(named.group(1))
        around.append(_OWN_CORNERS.sub("{}", broken))
    around.append(text[done:])
    first = text.find("[")
    if -1 < first < text.find("{") and "]" not in text[text.rfind("}") :] and not found.errors:
        found.errors.append("the list is cut off: no closing bracket")
    if found.grammar is None:
        found.errors.append("no object with readable corners")
    return found, "{}".join(around)


def _number(text: str) -> float | None:
    return float(text) if len(text) <= MAX_NUMBER else None


def _merged(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's values; corners that are stated twice are two boxes."""
    values = dict(pairs)
    if len(values) < len(pairs):
        for key in _CORNER_KEYS.keys() & values.keys():
            stated = [value for name, value in pairs if name == key]
            values[key] = stated if len(stated) > 1 else values[key]
    return values


_DECODER = json.JSONDecoder(
    object_pairs_hook=_merged,
    parse_float=_number,
    parse_int=lambda text: int(text) if len(text) <= MAX_NUMBER else None,
)


def _objects(text: str) -> Iterator[tuple[dict[str, Any] | None, int, int]]:
    """Yield one object after another with its start and end; None for one that cannot be read."""
    position = text.find("{")
    while position >= 0:
        item, end = _object_at(text, position)
        following = text.find("{", end)
        if item is None:
            end = following if following >= 0 else len(text)
        yield item, position, end
        position = following


def _object_at(text: str, position: int) -> tuple[dict[str, Any] | None, int]:
    try:
        return _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError):
        pass
    flat = _FLAT_OBJECT.match(text, position)
    lenient = _lenient_object(flat.group()) if flat else {}
    return (lenient, flat.end()) if flat and lenient else (None, position + 1)


def _lenient_object(text: str) -> dict[str, Any]:
    """Read an object with single quotes, as Python prints it."""
    pairs: list[tuple[str, Any]] = [
        (key, numbers_of(numbers) if numbers else single or double)
        for key, numbers, single, double in _PAIR.findall(text)
    ]
    image = _IMAGE_NUMBER.search(text)
    return _merged(pairs) | ({"image": int(image.group(1))} if image else {})


def _take_object(item: dict[str, Any], found: Recognised) -> None:
    """Take the boxes of an object and of all that stands in it."""
    if "box_format" in item:
        found.take_frame(item["box_format"])
    listed = item.get("detections")
    if not isinstance(listed, list):
        _take_values(item, found)
        return
    found.grammar = found.grammar or "slake_json"
    for part in listed:
        _take_values(part, found)
    rest = {key: value for key, value in item.items() if key not in ("detections", "box_format")}
    _take_strays(rest, found)


def _take_values(item: Any, found: Recognised) -> None:
    keys = _corner_keys(item)
    if not keys:
        found.errors.append(f"an object without corners ({', '.join(_CORNER_KEYS)})")
        _take_strays(item, found)
        return
    for key in keys:
        _take_corners(item, key, found)
    if len(keys) > 1:
        found.errors.append(f"an object with corners under {' and '.join(keys)}")
    for key, value in item.items():
        if key not in keys and isinstance(value, dict | list):
            _take_strays(value, found)


def _corner_keys(item: Any) -> list[str]:
    return [key for key in _CORNER_KEYS if key in item] if isinstance(item, dict) else []


def _take_corners(item: dict[str, Any], key: str, found: Recognised) -> None:
    found.grammar = found.grammar or _CORNER_KEYS[key]
    label = next((item[k] for k in _LABEL_KEYS if isinstance(item.get(k), str)), "")
    value = item[key]
    nested = isinstance(value, list) and value and all(isinstance(v, list) for v in value)
    for corners in value if nested else [value]:
        row = _corners(corners)
        if row is None:
            found.errors.append(f"{shown(label)}: {key} is not a list of four numbers")
        else:
            if "image" in item:
                found.images[len(found.rows)] = item["image"]
            found.rows.append((label, (row[1], row[0], row[3], row[2]) if key == "box_2d" else row))


def _take_strays(value: Any, found: Recognised) -> None:
    """Take the boxes that stand where none belongs: inside another object, or in a bare list; each with an error."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        keys, row, before = _corner_keys(value), _corners(value), len(found.rows)
        for key in keys:
            _take_corners(value, key, found)
        if row is not None:
            found.grammar = found.grammar or "medmo_bare_list"
            found.rows.append(("", row))
        elif isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, dict):
            waiting += [inner for key, inner in value.items() if key not in keys]
        if len(found.rows) > before:
            found.errors.append("a box stands inside another object, or in a list that is none of boxes")


def _corners(value: Any) -> tuple[float, ...] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        return None
    return tuple(float(v) for v in value)

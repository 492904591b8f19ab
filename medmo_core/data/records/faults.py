"""Faults of a data file, each with its place, what was expected, and the fix.

`FieldReader` takes one JSON object apart and notes every fault on the way instead of stopping at the first.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ...errors import UserError
from ...nearest import nearest_name
from ...printable import printable

T = TypeVar("T")
LARGEST = 10**15  # whole numbers beyond this do not survive as floats
LARGEST_WHOLE = 10**9  # pixels, frames and indices, whose differences must fit 32 bits
DEEPEST = 32  # lists and objects inside one another
FOREIGN_KEYS = {
    "bbox": "write xyxy_px: [x1, y1, x2, y2] in px; of COCO's [x, y, width, height], x2 is x + width, y2 is y + height",
    "file_name": "write path",
    "category_id": "write label, in words",
    "segmentation": "write its box as xyxy_px",
    "annotations": "a COCO file is converted by: medmo convert coco FILE -o my.jsonl",
    "categories": "a COCO file is converted by: medmo convert coco FILE -o my.jsonl",
    "conversations": "such records are converted by: medmo convert llava FILE -o my.jsonl",
}
"""Fields of well-known formats of others -> what to do about them."""
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict, _REPR.maxstring, _REPR.maxlong = 4, 12, 12, 8, 60, 40


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a data file.

    Attributes:
        file: the data file.
        line: line, row or record in it, from 1; 0 where the fault is of the file as a whole.
        field: path inside the record, such as `boxes[2].xyxy_px`.
        problem: what is wrong.
        expected: what belongs there.
        fix: what to do.
        level: `error`, or `warning` for what can be used as it is.
    """

    field: str
    problem: str
    expected: str = ""
    fix: str = ""
    level: str = "error"
    file: str = ""
    line: int = 0

    def at(self, file: str, line: int) -> Fault:
        """Return the same fault with its place."""
        return replace(self, file=file, line=line)

    def __str__(self) -> str:
        place = ":".join(part for part in (self.file, str(self.line) if self.line else "") if part)
        head = ": ".join(part for part in (place, self.field) if part)
        text = f"{head}: {'warning: ' if self.level == 'warning' else ''}{self.problem}"
        text += f"; expected {self.expected}" if self.expected else ""
        return printable(text + (f"; fix: {self.fix}" if self.fix else ""))


class RecordError(UserError, ValueError):
    """A record cannot be used; `faults` holds every reason, the message the first."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        more = f" (and {len(faults) - 1} more; run `medmo validate`)" if len(faults) > 1 else ""
        super().__init__(f"{faults[0]}{more}")
        self.faults = tuple(faults)

    def __reduce__(self) -> tuple[type[RecordError], tuple[tuple[Fault, ...]]]:
        return RecordError, (self.faults,)  # by default it would be made anew of its message


class FieldReader:
    """Reader of the fields of one JSON object that collects what is wrong with them.

    Args:
        values: the parsed object.
        faults: where faults are noted.
        path: place of the object inside the record; "" for the record itself.
        known: names of the fields it may have; any other is a fault that names the nearest.
    """

    def __init__(self, values: Any, faults: list[Fault], path: str, known: Sequence[str]) -> None:
        self.faults, self.path = faults, path
        self.values: dict[str, Any] = values if isinstance(values, dict) else {}
        if not isinstance(values, dict):
            self.fault("", f"is {shown(values)}", "a JSON object", f"write {{...}} with {', '.join(known)}")
        for key in self.values:
            if key not in known:
                self.fault(key, "unknown key", f"one of {', '.join(known)}", _advice(key, known))

    def where(self, name: str) -> str:
        """Return the path of a field."""
        return f"{self.path}.{name}" if self.path and name else self.path or name

    def fault(self, name: str, problem: str, expected: str = "", fix: str = "") -> None:
        """Note a fault of a field."""
        self.faults.append(Fault(self.where(name), problem, expected, fix))

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def text(self, name: str, *, required: bool = False, fix: str = "") -> str | None:
        """Return a text field."""
        return self._checked(name, lambda v: isinstance(v, str) and (v != "" or not required), "a text", required, fix)

    def option(self, name: str, options: Sequence[str], *, required: bool = False) -> str | None:
        """Return a text field that is one of `options`."""
        value = self.values.get(name)
        near = nearest_name(str(value), options)
        fix = f"did you mean {near!r}?" if near else ""
        return self._checked(name, lambda v: v in options, f"one of {', '.join(options)}", required, fix)

    def integer(self, name: str, *, least: int = 0) -> int | None:
        """Return a whole number field."""
        return self._checked(name, lambda v: is_integer(v) and v >= least, f"a whole number from {least}")

    def number(self, name: str) -> float | None:
        """Return a finite number field."""
        value = self._checked(name, is_number, "a number")
        return None if value is None else float(value)

    def row(self, name: str, size: int, *, whole: bool = False, required: bool = False) -> tuple[Any, ...] | None:
        """Return a field of `size` numbers."""
        kind = is_integer if whole else is_number
        value = self._checked(
            name,
            lambda v: isinstance(v, list) and len(v) == size and all(kind(x) for x in v),
            f"a list of {size} {'whole ' if whole else ''}numbers",
            required,
        )
        return None if value is None else tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a field that is a list of texts."""
        value = self._checked(
            name, lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v), "a list of texts"
        )
        return tuple(value or ())

    def each(self, name: str, read: Callable[[Any, str], T | None]) -> tuple[T, ...]:
        """Return a list field, each entry read by `read(value, path)`; entries that could not be read are left out."""
        values = self._checked(name, lambda v: isinstance(v, list), "a list") or []
        entries = (read(value, f"{self.where(name)}[{index}]") for index, value in enumerate(values))
        return tuple(entry for entry in entries if entry is not None)

    def _checked(
        self, name: str, test: Callable[[Any], bool], expected: str, required: bool = False, fix: str = ""
    ) -> Any:
        value = self.values.get(name)
        if value is None:
            if required:
                self.fault(name, "is missing" if name not in self.values else "is null", expected, fix or "add it")
            return None
        if test(value):
            return value
        self.fault(name, f"is {shown(value)}", expected, fix)
        return None


def is_integer(value: Any) -> bool:
    """Whether a JSON value is a whole number of a size that pixels and indices have."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_WHOLE


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < LARGEST
    return isinstance(value, float) and math.isfinite(value)


def shown(value: Any, limit: int = 60) -> str:
    """Return a value as a message shows it: short, however large or deep it is."""
    text = _REPR.repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def text_faults(values: Any) -> list[Fault]:
    """Return the faults of parsed JSON values that no text file can hold: lone surrogates, and nesting without end."""
    faults: list[Fault] = []
    waiting = [("", values, 0)]
    while waiting:
        path, value, depth = waiting.pop()
        if isinstance(value, str):
            if not value.isascii() and not _is_utf8(value):
                fix = "write the character itself, or both halves of its escape"
                faults.append(Fault(path, "holds half a character (a lone surrogate)", "UTF-8 text", fix))
        elif isinstance(value, dict | list):
            if depth == DEEPEST:
                return [Fault("", f"is nested deeper than {DEEPEST} levels", "a record", "flatten it")]
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in pairs:
                place = f"[{key}]" if isinstance(value, list) else f".{key}" if path else f"{key}"
                waiting.append((path + place, inner, depth + 1))
                if isinstance(key, str) and not _is_utf8(key):
                    waiting.append((path + place, key, depth + 1))
    return faults


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _advice(key: str, known: Sequence[str]) -> str:
    """Return what to do about an unknown field."""
    if key in FOREIGN_KEYS:
        return FOREIGN_KEYS[key]
    near = nearest_name(key, known)
    return f"did you mean {near!r}?" if near else "remove it, or put it into provenance"

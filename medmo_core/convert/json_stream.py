"""Values of large JSON files one by one: items of the lists in a document, or documents one after another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import InputError

CHUNK = 1 << 16
LARGEST = 1 << 26  # characters of one value
SPACE = " \t\r\n\ufeff"


def list_items(path: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield (name, item) of lists that stand at the top of a JSON object; what is not asked for is read and dropped.

    Args:
        path: file of one JSON object.
        names: names of the lists.

    Raises:
        InputError: the file is no such JSON.
    """
    with path.open(encoding="utf-8") as file:
        reader = _Reader(path, file)
        reader.expect("{")
        while reader.peek() != "}":
            name = reader.value()
            reader.expect(":")
            if reader.peek() == "[":
                for item in reader.items():
                    if name in names:
                        yield name, item
            else:
                reader.value()
            if reader.peek() == ",":
                reader.expect(",")


def documents(path: Path) -> Iterator[Any]:
    """Yield the items of a file's one JSON list, or its JSON values one after another, as in JSONL.

    Raises:
        InputError: the file is no such JSON.
    """
    with path.open(encoding="utf-8") as file:
        reader = _Reader(path, file)
        if reader.peek() == "[":
            yield from reader.items()
        while reader.peek():
            yield reader.value()


class _Reader:
    """Reader of JSON piece by piece."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.text, self.position, self.decoder = "", 0, json.JSONDecoder()

    def peek(self) -> str:
        """Return the next character that is no space; "" at the end."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in SPACE:
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._more(CHUNK):
                return ""

    def expect(self, mark: str) -> None:
        """Step over a mark."""
        if self.peek() != mark:
            raise self._wrong(f"{mark!r} is missing")
        self.position += 1

    def items(self) -> Iterator[Any]:
        """Yield the items of a list."""
        self.expect("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self.expect(",")
        self.expect("]")

    def value(self) -> Any:
        """Return the next value, of which as much is read as it takes."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.position)
                if end < len(self.text) or not self._more(size):  # a number could go on
                    self.position = end
                    return value
            except RecursionError:
                raise self._wrong("it is nested too deep") from None
            except ValueError as error:
                if len(self.text) > LARGEST:
                    raise self._wrong("one value is larger than 64 MiB") from None
                if not self._more(size):
                    raise self._wrong(getattr(error, "msg", "a number is too long")) from None
            size *= 2

    def _more(self, size: int) -> bool:
        try:
            read = self.file.read(size)
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: is not UTF-8; save it as UTF-8") from None
        self.text, self.position = self.text[self.position :] + read, 0
        return bool(read)

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self.path}: cannot be read as JSON ({what}); is the file whole?")

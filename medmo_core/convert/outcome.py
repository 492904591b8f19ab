"""Outcomes of a conversion, one per row: a record as JSON values, or what was left out and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
NONE_LEFT = "none of its boxes can be used, which is not the same as none to find"
DEFAULT_QUESTION = "Locate every labelled finding in this image."


@dataclass(frozen=True)
class LeftOut:
    """Something that was read and is in no record.

    Attributes:
        what: name of the row or box, as a message shows it.
        reason: cause, in words.
        is_part: whether the rest of its row became a record.
    """

    what: str
    reason: str
    is_part: bool = False


@dataclass(frozen=True)
class Job:
    """Source of a conversion, and where its pictures lie.

    Attributes:
        source: file or folder to read.
        pictures: folder that picture names in it are relative to.
        question: question of records whose format has none; None: the format's usual one.
    """

    source: Path
    pictures: Path
    question: str | None = None

    def where(self, number: int) -> str:
        """Return the place of a row for messages and ids."""
        return f"{self.source.name}:{number}"


Outcome = Record | LeftOut
Converter = Callable[[Job], Iterator[Outcome]]

"""Figures as a Markdown table, as JSON, and beside those of another checkout."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from .figures import LESS, MORE, Figure


def table(figures: Iterable[Figure]) -> str:
    """Return figures as a Markdown table."""
    rows = ["| figure | value | |", "|---|---:|---|"]
    return "\n".join([*rows, *(f"| {item.label} | {item.shown} | {item.note} |" for item in figures)])


def is_worse(old: Figure, new: Figure) -> bool:
    """Return whether a figure has moved away from what is better; a difference that is not shown is none."""
    before, after = round(old.value, new.digits), round(new.value, new.digits)
    return after > before if new.better == LESS else after < before if new.better == MORE else False


def beside(old: Iterable[Figure], new: Iterable[Figure]) -> tuple[str, list[Figure]]:
    """Return a table of two measurements, and the figures that are worse in the second.

    Args:
        old: first measurement; a figure that it lacks is shown as new.
        new: second measurement.
    """
    before = {item.key: item for item in old}
    rows, worse = ["| figure | old | new | | |", "|---|---:|---:|---|---|"], []
    for item in new:
        other = before.get(item.key)
        mark = ""
        if other and is_worse(other, item):
            worse.append(item)
            mark = "**worse**"
        elif other and is_worse(item, other):
            mark = "better"
        rows.append(f"| {item.label} | {other.shown if other else 'new'} | {item.shown} | {mark} | {item.note} |")
    return "\n".join(rows), worse


def write(figures: Iterable[Figure], file: Path) -> None:
    """Write figures as JSON."""
    text = json.dumps([asdict(item) for item in figures], indent=1, ensure_ascii=False)
    file.write_text(f"{text}\n", encoding="utf-8")


def read(file: Path) -> list[Figure]:
    """Read figures that `write` has written."""
    return [Figure(**item) for item in json.loads(file.read_text(encoding="utf-8"))]

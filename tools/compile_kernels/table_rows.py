"""The rows of the shipped tables: those that launchers read, and those that nothing was compiled with."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import medmo_kernels
from medmo_kernels import tables


@contextmanager
def rows_read() -> Iterator[set[str]]:
    """Note the rows that launchers read meanwhile, each as one line of text."""
    look_up, rows = tables.launch_row, set[str]()

    def note(room: str, device_capability: int, **key: Any) -> Any:
        row = look_up(room, device_capability, **key)
        rows.add(_line(room, row))
        return row

    tables.launch_row = note  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield rows
    finally:
        tables.launch_row = look_up


def unused_rows(used: set[str], capabilities: Sequence[int]) -> list[str]:
    """Return the rows of launch configurations that nothing was compiled with."""
    rooms = sorted(path.parent.name for path in Path(medmo_kernels.__path__[0]).glob(f"*/{tables.TABLE}"))
    shipped = [_line(room, row) for room in rooms for row in tables.table(room)["rows"]
               if "kernel" in row and row["capability"] in capabilities]  # fmt: skip
    return [line for line in shipped if line not in used]


def _line(room: str, row: Any) -> str:
    return f"{room}: {json.dumps(dict(row), sort_keys=True)}"

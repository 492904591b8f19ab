"""The shipped tables: launch configurations of the kernels, and the back end of each class of shapes.

Every room that tunes anything has a `table.json` with its provenance and two kinds of rows, each for one compute
capability; a row serves every newer device up to the next row, and the oldest one also what is older still.

- A row with `kernel` configures a launch. `blocks` are compile-time constants of the kernel, under their own names;
  `options` are Triton's; `launch` are numbers that the launcher reads. Every other field is a condition: a row serves
  a launch that meets all of them.
- A row with `op` and `shape` names the back end of an op for a class of shapes, with what was `measured`.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from . import runtime

TABLE = "table.json"
SETTINGS = ("capability", "blocks", "options", "launch")
"""Fields of a row with `kernel` that are no conditions."""


class Tuned(NamedTuple):
    """Configuration of one launch.

    Attributes:
        blocks: compile-time constants of the kernel.
        options: options of Triton's compiler, such as `num_warps`.
        launch: numbers for the launcher, such as tokens per program.
    """

    blocks: Mapping[str, Any]
    options: Mapping[str, Any]
    launch: Mapping[str, int]


def tuned(room: str, kernel: str, x: Tensor, **conditions: Any) -> Tuned:
    """Look up how to launch a kernel.

    Args:
        room: folder of the table.
        kernel: name of the kernel in the table.
        x: tensor that the kernel computes on; its device and the bits of its elements choose among the rows.
        conditions: other fields that a row may ask for, such as `head_dim`.

    Returns:
        The configuration. Products and sums are fused unless the row forbids it.

    Raises:
        LookupError: no row serves this launch.
    """
    row = launch_row(room, runtime.capability(x.device), kernel=kernel, bits=8 * x.element_size(), **conditions)
    return Tuned(row.get("blocks", {}), {"enable_fp_fusion": True, **row["options"]}, row.get("launch", {}))


@lru_cache(maxsize=1024)
def launch_row(room: str, capability: int, **key: Any) -> Mapping[str, Any]:
    """Return the row whose conditions a launch meets, for this capability or the nearest one below it.

    Raises:
        LookupError: no row serves this launch.
    """
    rows = [row for row in table(room)["rows"] if "kernel" in row and _conditions(row).items() <= key.items()]
    if not rows:
        raise LookupError(f"{room}/{TABLE} has no row for {key}")
    return _nearest(rows, capability)


def _conditions(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in SETTINGS}


@lru_cache(maxsize=1024)
def back_end_row(room: str, capability: int, op: str, shape: str) -> Mapping[str, Any] | None:
    """Return the row that names an op's back end for a class of shapes; None where the table has no such class."""
    rows = [row for row in table(room)["rows"] if row.get("op") == op and row.get("shape") == shape]
    return _nearest(rows, capability) if rows else None


def _nearest(rows: list[Mapping[str, Any]], capability: int) -> Mapping[str, Any]:
    rows.sort(key=lambda row: row["capability"])
    fitting = [row for row in rows if row["capability"] <= capability]
    return MappingProxyType((fitting or rows[:1])[-1])


@lru_cache(maxsize=32)
def table(room: str) -> Mapping[str, Any]:
    """Return a room's shipped table: `provenance` (how its rows were found) and `rows`."""
    return MappingProxyType(json.loads((Path(__file__).parent / room / TABLE).read_text(encoding="utf-8")))


def shapes(room: str, op: str) -> tuple[str, ...]:
    """Return the classes of shapes for which a room's table names an op's back end."""
    return tuple(dict.fromkeys(row["shape"] for row in table(room)["rows"] if row.get("op") == op))


def reason_of(row: Mapping[str, Any]) -> str:
    """Say why a row names its back end: what was measured, or that nothing was."""
    found = row.get("measured")
    if found is None:
        return f"not measured yet: {row['reason']}" if "reason" in row else "not measured yet"
    place = f"{found['device']}, commit {found['commit']}, {found['date']}"
    return f"measured: {found['ratio']:.2f}x as fast as {found['over']}, {place}"

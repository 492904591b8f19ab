"""The table of loops with matrix products: what a pass costs on a Hopper, and what costs more than a page says."""

from collections.abc import Sequence
from typing import Any

HEADING = "### Loops with matrix products, as compiled for sm_90"
ABOUT = " ".join(
    (
        "Counted from machine code, not measured: cycles of a partition of a multiprocessor for one block of threads.",
        "Matrix: at full rate. Issue: one instruction a cycle. Special: exponentials and reciprocals. A pass takes at",
        "least the largest of the three; a drain waits until no product is under way, a barrier for the other warps, a",
        "memory barrier for stores. Outside: cycles to issue once what stands before, between and behind the loops.",
    )
)
COUNTS = ("matrix", "issue", "special", "drains", "barriers", "memory barriers", "outside")
MAY_GROW = ("matrix",)
"""A loop that multiplies more in a pass has larger tiles, which is no loss."""


def loops(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table's lines: one for each loop of each kernel that has such loops."""
    rows = [f"| op | kernel | configuration | loop | {' | '.join(COUNTS)} |", "|---" * (4 + len(COUNTS)) + "|"]
    for record in records:
        for number, loop in enumerate((record["budget"] or {"loops": ()})["loops"]):
            figures = [loop[name] for name in ("matrix", "issue", "special", "drains", "barriers", "fences")]
            figures.append(record["budget"]["outside"])
            rows.append(f"| `{record['op']}` | `{record['kernel']}` | {record['size']} | {number} | "
                        f"{' | '.join(f'{figure:g}' for figure in figures)} |")  # fmt: skip
    return rows


def grown(before: str, after: str) -> list[str]:
    """Say which figures of which loops are larger in one version of the page's section than in another.

    Args:
        before: older text with the table, or without any.
        after: newer text with the table.
    """
    old, said = _figures(before), []
    for loop, figures in _figures(after).items():
        for name, figure in figures.items():
            was = old.get(loop, figures)[name]
            if figure > was and name not in MAY_GROW:
                said.append(f"{', '.join(loop[:-1])}, loop {loop[-1]}: {name} {figure:g}, was {was:g}")
    return said


def _figures(section: str) -> dict[tuple[str, ...], dict[str, float]]:
    """Return the figures of the table by op, kernel, configuration and loop."""
    found = {}
    for line in section.partition(HEADING)[2].splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if len(cells) == 4 + len(COUNTS) and cells[3].isdigit():
            found[tuple(cells[:4])] = dict(zip(COUNTS, map(float, cells[4:]), strict=True))
    return found

"""Cycles that a kernel takes at least on a Hopper, counted from its machine code: nothing here was measured.

A multiprocessor has four partitions. In one cycle each issues one instruction and multiplies 512 pairs of 16-bit
numbers. Counted are one block of threads and one pass through a loop: instructions that a predicate switches off and
branches that are not taken count too, waiting does not. The real time lies above both the matrix and the issue cycles,
near their maximum where they overlap and near their sum where every product is waited for.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import sass

MATRIX = frozenset({"HGMMA", "HMMA"})
"""Instructions of matrix products: of a group of four warps, which fills all partitions, and of one warp."""
PRODUCTS = 512
"""Pairs of 16-bit numbers that a partition multiplies in a cycle."""
SPECIAL_CYCLES = 8
"""Cycles of the unit for exponentials and reciprocals for the 32 threads of a warp."""


@dataclass(frozen=True)
class Loop:
    """One pass of a loop with matrix products.

    Attributes:
        matrix: cycles of the matrix units at full rate.
        issue: cycles to issue all instructions.
        special: cycles of the unit for exponentials and reciprocals.
        drains: waits until no product is under way.
        barriers: waits for the other warps of the block.
        fences: memory barriers.
    """

    matrix: float
    issue: float
    special: float
    drains: int
    barriers: int
    fences: int


@dataclass(frozen=True)
class Budget:
    """Cycles of a kernel's loops with matrix products, and of the rest.

    Attributes:
        loops: innermost loops with matrix products, in the order of the code.
        outside: cycles to issue every instruction outside these loops once.
    """

    loops: Sequence[Loop]
    outside: float


def budget(text: str, num_warps: int) -> Budget:
    """Count the cycles of a disassembled kernel.

    Args:
        text: output of `nvdisasm -c`.
        num_warps: warps of a block.
    """
    code = sass.parse(text)
    loops = list(sass.innermost(code, MATRIX))
    inside = sum(loop.last - loop.first + 1 for loop in loops)
    share = num_warps / 4  # warps of a partition
    return Budget([_loop(sass.body(code, loop), share) for loop in loops], (len(code.instructions) - inside) * share)


def _loop(instructions: Sequence[str], share: float) -> Loop:
    kinds = [sass.kind(instruction) for instruction in instructions]
    return Loop(
        matrix=sum(_matrix_cycles(sass.name(x)) for x in instructions) * share,
        issue=len(instructions) * share,
        special=kinds.count("MUFU") * SPECIAL_CYCLES * share,
        drains=sum(kind == "WARPGROUP" and _is_drain(x) for kind, x in zip(kinds, instructions, strict=True)),
        barriers=kinds.count("BAR"),
        fences=kinds.count("MEMBAR"),
    )


def _is_drain(instruction: str) -> bool:
    return "DEPBAR" in instruction and re.search(r"gsb\d+, 0x0\b", instruction) is not None


def _matrix_cycles(name: str) -> float:
    """Return the cycles that a partition multiplies for one warp: a group's product keeps its four warps as long."""
    kind, _, rest = name.partition(".")
    if kind == "HGMMA":  # .64x128x16
        m, n, k = map(int, re.findall(r"\d+", rest)[:3])
        products = m * n * k / 4
    elif kind == "HMMA":  # .16816
        m, n, k = int(rest[:2]), int(rest[2]), int(rest[3:].partition(".")[0])
        products = m * n * k
    else:
        return 0.0
    return products / (PRODUCTS / 2 if "TF32" in rest else PRODUCTS)

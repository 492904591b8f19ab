"""Disassembled machine code as instructions and loops: what `nvdisasm -c` prints of one kernel."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PLACE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
LABEL = re.compile(r"^\s*(\.L_\w+):")
NAME = re.compile(r"^(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)")
TARGET = re.compile(r"`\((\.L_\w+)\)")


class Loop(NamedTuple):
    """Instructions from the target of a jump back to the jump, both included.

    Attributes:
        first: index of the first instruction.
        last: index of the jump.
    """

    first: int
    last: int


class Code(NamedTuple):
    """Machine code of a kernel.

    Attributes:
        instructions: text of each, without its place and the semicolon; padding behind the code is left out.
        loops: all loops, in the order of their beginnings; an outer loop before those inside it.
    """

    instructions: Sequence[str]
    loops: Sequence[Loop]


def parse(text: str) -> Code:
    """Read what `nvdisasm -c` printed."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        label, place = LABEL.match(line), PLACE.search(line)
        if label:
            labels[label[1]] = len(instructions)
        elif place and name(place[1]) != "NOP":
            instructions.append(place[1])
    loops: dict[int, int] = {}
    for index, instruction in enumerate(instructions):
        target = TARGET.search(instruction) if name(instruction).startswith("BRA") else None
        first = labels.get(target[1], index) if target else index
        if first < index:  # a jump to itself stands behind the end, as a trap
            loops[first] = max(index, loops.get(first, 0))
    return Code(instructions, [Loop(*pair) for pair in sorted(loops.items())])


def name(instruction: str) -> str:
    """Return the operation of an instruction with all its suffixes, such as `HGMMA.64x128x16.F32.BF16`."""
    found = NAME.match(instruction)
    return found[1] if found else instruction


def kind(instruction: str) -> str:
    """Return the operation of an instruction without suffixes, such as `HGMMA`."""
    return name(instruction).partition(".")[0]


def innermost(code: Code, kinds: frozenset[str]) -> Iterator[Loop]:
    """Yield the loops that hold an instruction of these kinds, and no other loop that does."""
    holding = [loop for loop in code.loops if any(kind(x) in kinds for x in body(code, loop))]
    for loop in holding:
        if not any(loop != other and loop.first <= other.first and other.last <= loop.last for other in holding):
            yield loop


def body(code: Code, loop: Loop) -> Sequence[str]:
    """Return the instructions of a loop."""
    return code.instructions[loop.first : loop.last + 1]

"""The contents of a compiled kernel: registers, stack and instructions, read with the tools that Triton brings."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from . import sass
from .pretended import triton

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Cubin(NamedTuple):
    """The contents of a compiled kernel.

    Attributes:
        registers: registers per thread.
        stack: bytes per thread.
        spills: instructions that read or write the stack.
        hgmma: warp-group matrix instructions.
        copies: instructions that copy memory to shared memory.
        narrow: names of those that copy fewer than 16 bytes, and of those that read or convert single bytes.
    """

    registers: int
    stack: int
    spills: int = 0
    hgmma: int = 0
    copies: int = 0
    narrow: tuple[str, ...] = ()


@cache
def read_cubin(cubin: bytes, disassembled: bool) -> Cubin:
    """Return what a compiled kernel holds; its instructions are counted only if asked, or where there is a stack.

    Disassembling takes 0.4 s, a tenth of compiling: it is done only where there is something to count.
    """
    with _file(cubin) as path:
        usage = _said("cuobjdump", "-res-usage", path)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no registers, expected REG, STACK and LOCAL:\n{usage}")
    registers, stack, local = map(int, found.groups())
    code = disassemble(cubin) if stack or local or disassembled else ""
    return Cubin(registers, stack, *count_instructions(code))


@cache
def disassemble(cubin: bytes) -> str:
    """Return the machine code of a compiled kernel, as `sass.parse` reads it."""
    with _file(cubin) as path:
        # No analysis of the flow of data, which takes a quarter of the time.
        return _said("nvdisasm", "-c", "-ndf", path)


def count_instructions(text: str) -> tuple[int, int, int, tuple[str, ...]]:
    """Return what `Cubin` counts in a disassembly: spills, warp-group products, copies, and the narrow names."""
    names = [sass.name(instruction) for instruction in sass.parse(text).instructions]
    kinds = [name.partition(".")[0] for name in names]
    copies = [name for name, kind in zip(names, kinds, strict=True) if kind == "LDGSTS"]
    narrow = {name for name in copies if not name.endswith(".128")}
    narrow |= {n for n, k in zip(names, kinds, strict=True)
               if k in ("I2F", "I2FP") or (k == "LDG" and re.search(r"\.[US]8\b", n))}  # fmt: skip
    return kinds.count("LDL") + kinds.count("STL"), kinds.count("HGMMA"), len(copies), tuple(sorted(narrow))


@contextmanager
def _file(cubin: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        yield path


def _said(tool: str, *words: str | Path) -> str:
    done = subprocess.run([TOOLS / tool, *words], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr

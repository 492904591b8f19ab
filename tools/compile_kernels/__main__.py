"""Compile every shipped Triton kernel ahead of time, with no GPU, and hold the result to its gate.

    python -m tools.compile_kernels                         # all rooms and classes of shapes, for sm_80, sm_90, sm_100
    python -m tools.compile_kernels --rooms giou            # one room
    python -m tools.compile_kernels --rooms giou --cycles   # for sm_90, with the cycles of every loop with products

Each op runs at its `compile.sizes` and `classes` (backward included) with launches intercepted: nothing is executed,
every kernel is compiled exactly as its launcher would launch it on such a device. The cubin shows registers, stack,
shared memory and matrix instructions. The exit status is 1 where a kernel breaks its gate. `make kernels-oldest` does
the same under the oldest supported Triton.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from .pretended import CAPABILITIES, specs, torch, triton
from .records import COUNTED, Record, inspect
from .table_rows import rows_read, unused_rows


def compile_one(task: tuple[str, str, int]) -> tuple[list[Record], set[str]]:
    """Compile one (op, size, capability); runs in a worker process. Also returns the table rows that were read."""
    torch.set_num_threads(1)
    name, size, capability = task
    spec = next(spec for spec in specs() if spec.name == name)
    with rows_read() as rows:
        return inspect(spec, size, capability), rows


def compile_all(
    rooms: Sequence[str], capabilities: Sequence[int], jobs: int, cycles: bool, models: bool
) -> tuple[list[Record], set[str]]:
    """Compile the named rooms (all of them where none is named) and print progress; also return the rows read."""
    tasks = [
        (spec.name, size, capability)
        for spec in specs()
        if not rooms or spec.name in rooms or spec.function.__module__.split(".")[1] in rooms
        for size in (spec.compile.sizes if models else spec.compile.sizes | spec.compile.classes)
        for capability in capabilities
    ]
    if not tasks:
        raise SystemExit(f"no room with kernels is called {', '.join(rooms)}")
    records: list[Record] = []
    used: set[str] = set()
    with ProcessPoolExecutor(jobs) as pool:
        for found, rows in pool.map(compile_one, tasks):
            records += found
            used |= rows
            for record in found:
                print("\n".join(describe(record, cycles)), flush=True)
    return records, used


def describe(record: Record, cycles: bool) -> list[str]:
    """Return what is printed of a kernel: what it needs and breaks, and its cycles if asked."""
    r = record
    lines = [f"{r.op} | {r.size} | sm_{r.capability} | {r.kernel}: {r.registers} registers, {r.stack} B stack, "
             f"{r.shared} B shared, {r.hgmma} HGMMA, {r.seconds} s: {'; '.join(r.faults) or 'ok'}"]  # fmt: skip
    if not cycles or r.budget is None:
        return lines
    for number, loop in enumerate(r.budget.loops):
        lines.append(f"    loop {number}, one pass: matrix {loop.matrix:g}, issue {loop.issue:g}, special "
                     f"{loop.special:g} cycles; drains {loop.drains}, barriers {loop.barriers}, memory barriers "
                     f"{loop.fences}")  # fmt: skip
    lines.append(f"    outside loops: issue {r.budget.outside:g} cycles")
    if r.passes and len(r.budget.loops) == 1:
        (loop,) = r.budget.loops
        lines.append(f"    a block, {r.passes} passes: matrix {r.passes * loop.matrix:g}, issue "
                     f"{r.passes * loop.issue + r.budget.outside:g} cycles")  # fmt: skip
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print, and return 1 where a kernel breaks its gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="*", default=[], help="rooms or ops; default: all")
    parser.add_argument("--capabilities", nargs="*", type=int, default=list(CAPABILITIES))
    parser.add_argument("--models", action="store_true", help="only what the models at hand call, not every class")
    parser.add_argument("--cycles", action="store_true", help=f"compile for sm_{COUNTED} and print cycles")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the records here")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    capabilities = [COUNTED] if arguments.cycles else arguments.capabilities
    records, used = compile_all(arguments.rooms, capabilities, arguments.jobs, arguments.cycles, arguments.models)
    unused = [] if arguments.rooms else unused_rows(used, capabilities)
    for name in unused:
        print(f"never compiled: {name}")
    if arguments.json:
        listed = [asdict(record) for record in records]
        found = {"triton": triton.__version__, "records": listed, "unused_rows": unused}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    faults = [record for record in records if record.faults]
    print(f"triton {triton.__version__}: {len(records)} kernels in {time.perf_counter() - started:.0f} s, "
          f"{len(faults)} break their gate")  # fmt: skip
    return 1 if faults or unused else 0


if __name__ == "__main__":
    sys.exit(main())

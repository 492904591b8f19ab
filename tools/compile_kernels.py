"""Compile every shipped Triton kernel ahead of time, with no GPU, and hold the result to its gate.

    python -m tools.compile_kernels                # all rooms, for sm_80, sm_90 and sm_100; exit status 1 on a fault
    python -m tools.compile_kernels --rooms giou   # one room

Each op runs at its `compile.sizes` (backward included) with launches intercepted: nothing is executed, every kernel is
compiled exactly as its launcher would launch it on such a device. The cubin shows registers, stack, shared memory and
matrix instructions. `make kernels-oldest` does the same under the oldest supported Triton.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

os.environ["MEDMO_KERNELS"] = "triton"
os.environ["TRITON_INTERPRET"] = "0"

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

import medmo_kernels  # noqa: E402
from medmo_kernels import runtime, tables  # noqa: E402
from medmo_kernels.spec import OpSpec  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CAPABILITIES = (80, 90, 100)
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
"""Bytes of shared memory that one block may have, by capability."""
MIN_COPIES = 5
"""Fewest copies to shared memory in a kernel whose loop is fed by them: fewer, and the loop is not."""
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


@dataclass
class Record:
    """One kernel as compiled for one device."""

    op: str
    size: str
    kernel: str
    constants: dict[str, Any]
    capability: int
    num_warps: int
    num_stages: int
    registers: int
    stack: int
    spills: int
    shared: int
    hgmma: int
    seconds: float
    faults: list[str]


def specs() -> Iterator[OpSpec]:
    """Yield the specs of every room that has kernels."""
    for path in sorted(Path(medmo_kernels.__path__[0]).glob("*/triton_kernel.py")):
        yield from importlib.import_module(f"medmo_kernels.{path.parent.name}.cases").SPECS


class PretendedDriver:
    """Stands where Triton asks for the device at hand. The number of the device is its capability."""

    capability = 90

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.capability, 10)


@contextmanager
def on_pretended_device(capability: int, run: Callable[..., Any]) -> Iterator[None]:
    """Let launchers believe in a device, and let `run` stand for what launches a kernel."""
    plain_run = JITFunction.run
    driver: Any = PretendedDriver()
    driver.capability = capability
    triton.runtime.driver.set_active(driver)
    runtime.DEFAULT_CAPABILITY = capability
    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = plain_run


def run_op(spec: OpSpec, what: Any, dtype: torch.dtype) -> None:
    """Run an op at a size, forward and, where it learns, backward."""
    arguments = spec.make(what, torch.Generator().manual_seed(0), dtype)
    for name in spec.differentiable:
        if arguments.get(name) is not None:
            arguments[name].requires_grad_()
    result = spec.function(**arguments)
    outputs = [result] if isinstance(result, torch.Tensor) else list(result)
    learned = [out for out in outputs if isinstance(out, torch.Tensor) and out.requires_grad]
    if learned:
        torch.autograd.backward(learned, [torch.ones_like(out) for out in learned])


def launches(spec: OpSpec, size: str, capability: int) -> list[tuple[JITFunction, Any, dict[str, Any], float]]:
    """Run an op forward and backward and return what it would have launched: kernel, compiled form, constants."""
    found: dict[str, tuple[JITFunction, Any, dict[str, Any], float]] = {}
    plain_run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        started = time.perf_counter()
        compiled: Any = plain_run(self, *args, grid=grid, warmup=True, **kwargs)
        if hasattr(compiled, "result"):
            compiled = compiled.result()
        names = [parameter.name for parameter in self.params]
        bound = {**dict(zip(names, args, strict=False)), **kwargs}
        constants = {p.name: bound.get(p.name, p.default) for p in self.params if p.is_constexpr}
        # A compiled kernel's hash covers source, specialisation and options.
        found.setdefault(compiled.hash, (self, compiled, constants, time.perf_counter() - started))

    with on_pretended_device(capability, compile_only):
        run_op(spec, *spec.compile.sizes[size])
    return list(found.values())


def binaries(spec: OpSpec, sizes: Iterable[Any], dtype: torch.dtype, capability: int) -> dict[str, set[str]]:
    """Return, by kernel, the keys of the binaries that calls of an op at these sizes need; nothing is compiled."""
    found: dict[str, set[str]] = {}

    def note(*, key: str, fn: Any, **_: Any) -> bool:
        found.setdefault(fn.name, set()).add(key)
        return True  # ends the launch before its compilation

    triton.knobs.runtime.jit_cache_hook = note
    try:
        with on_pretended_device(capability, JITFunction.run):
            for what in sizes:
                run_op(spec, what, dtype)
    finally:
        triton.knobs.runtime.jit_cache_hook = None
    return found


def inspect(spec: OpSpec, size: str, capability: int) -> list[Record]:
    """Compile what an op launches at one size for one device, and read the cubins."""
    records = []
    for kernel, compiled, constants, seconds in launches(spec, size, capability):
        name = kernel.fn.__name__
        gate = spec.compile.gate(name, constants)
        matters = gate.wide_copies or (gate.hgmma and capability == 90)
        found = read_cubin(compiled.asm["cubin"], disassemble=matters)
        plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in constants.items()}
        meta = compiled.metadata
        record = Record(spec.name, size, name, plain, capability, meta.num_warps, meta.num_stages, found.registers,
                        found.stack, found.spills, meta.shared, found.hgmma if gate.hgmma else 0, round(seconds, 2),
                        [])  # fmt: skip
        if found.stack > gate.max_stack or (found.spills and not gate.max_stack):
            record.faults.append(f"{found.stack} bytes of stack and {found.spills} spills, at most {gate.max_stack} "
                                 "bytes allowed")  # fmt: skip
        if meta.shared > SHARED_LIMIT[capability]:
            record.faults.append(f"{meta.shared} bytes of shared memory, the device has {SHARED_LIMIT[capability]}")
        if gate.hgmma and capability == 90 and not found.hgmma:
            record.faults.append("no HGMMA instruction")
        if gate.wide_copies and found.narrow:
            record.faults.append(f"fewer than 16 bytes at a time: {', '.join(found.narrow)}")
        if gate.wide_copies and found.copies < MIN_COPIES:
            record.faults.append(f"{found.copies} copies to shared memory, at least {MIN_COPIES} expected")
        records.append(record)
    if not records:
        raise RuntimeError(f"{spec.name}, size {size!r}: nothing was launched")
    return records


@cache
def read_cubin(cubin: bytes, disassemble: bool) -> Cubin:
    """Return what a compiled kernel holds; its instructions are counted only if asked, or where there is a stack.

    Disassembling takes 0.4 s, a tenth of compiling: it is done only where there is something to count.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = told_by("cuobjdump", "-res-usage", path)
        found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        if found is None:
            raise RuntimeError(f"cuobjdump printed no registers, expected REG, STACK and LOCAL:\n{usage}")
        registers, stack, local = map(int, found.groups())
        # Names are all that is counted: no analysis of the control flow, which takes a quarter of the time.
        sass = told_by("nvdisasm", "-c", "-ndf", path) if stack or local or disassemble else ""
    return Cubin(registers, stack, *count_instructions(sass))


def count_instructions(sass: str) -> tuple[int, int, int, tuple[str, ...]]:
    """Return what `Cubin` counts in a disassembly: spills, warp-group products, copies, and the narrow names."""
    names = re.findall(r"\b((?:LDL|STL|HGMMA|LDGSTS|LDG|I2FP?)\b[A-Z0-9_.]*)", sass)
    kinds = [name.partition(".")[0] for name in names]
    copies = [name for name, kind in zip(names, kinds, strict=True) if kind == "LDGSTS"]
    narrow = {name for name in copies if not name.endswith(".128")}
    narrow |= {name for name in names if name.startswith("I2F") or re.search(r"\.[US]8\b", name)}
    return kinds.count("LDL") + kinds.count("STL"), kinds.count("HGMMA"), len(copies), tuple(sorted(narrow))


def told_by(tool: str, *words: str | Path) -> str:
    """Return what a tool that Triton brings says."""
    done = subprocess.run([TOOLS / tool, *words], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


class ReadRows:
    """Stands for `tables.launch_row` and notes which rows of the shipped tables the launchers read."""

    def __init__(self) -> None:
        self.look_up = tables.launch_row
        self.rows: set[str] = set()

    def __call__(self, room: str, device_capability: int, **key: Any) -> Any:
        row = self.look_up(room, device_capability, **key)
        self.rows.add(row_name(room, row))
        return row


def row_name(room: str, row: Any) -> str:
    """Return a row of a room's table as one line of text."""
    return f"{room}: {json.dumps(dict(row), sort_keys=True)}"


def unused_rows(used: set[str], capabilities: Sequence[int]) -> list[str]:
    """Return the rows of launch configurations that nothing was compiled with."""
    rooms = sorted(path.parent.name for path in Path(medmo_kernels.__path__[0]).glob(f"*/{tables.TABLE}"))
    shipped = [row_name(room, row) for room in rooms for row in tables.table(room)["rows"]
               if "kernel" in row and row["capability"] in capabilities]  # fmt: skip
    return [name for name in shipped if name not in used]


def compile_one(task: tuple[str, str, int]) -> tuple[list[Record], set[str]]:
    """Compile one (op, size, capability); runs in a worker process. Also returns the table rows that were read."""
    torch.set_num_threads(1)
    name, size, capability = task
    spec = next(spec for spec in specs() if spec.name == name)
    reader = ReadRows()
    tables.launch_row = reader  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return inspect(spec, size, capability), reader.rows
    finally:
        tables.launch_row = reader.look_up


def compile_all(rooms: Sequence[str], capabilities: Sequence[int], jobs: int) -> tuple[list[Record], set[str]]:
    """Compile the named rooms (all of them where none is named), telling progress; also return the rows read."""
    tasks = [
        (spec.name, size, capability)
        for spec in specs()
        if not rooms or spec.name in rooms or spec.function.__module__.split(".")[1] in rooms
        for size in spec.compile.sizes
        for capability in capabilities
    ]
    if not tasks:
        raise SystemExit(f"no room with kernels is called {', '.join(rooms)}")
    records: list[Record] = []
    used: set[str] = set()
    with ProcessPoolExecutor(jobs) as pool:
        for (name, size, capability), (found, rows) in zip(tasks, pool.map(compile_one, tasks), strict=True):
            records += found
            used |= rows
            for r in found:
                verdict = "; ".join(r.faults) or "ok"
                print(f"{name} | {size} | sm_{capability} | {r.kernel}: {r.registers} registers, {r.stack} B stack, "
                      f"{r.shared} B shared, {r.hgmma} HGMMA, {r.seconds} s: {verdict}", flush=True)  # fmt: skip
    return records, used


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print, and return 1 where a kernel breaks its gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="*", default=[], help="rooms or ops; default: all")
    parser.add_argument("--capabilities", nargs="*", type=int, default=list(CAPABILITIES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the records here")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    records, used = compile_all(arguments.rooms, arguments.capabilities, arguments.jobs)
    unused = [] if arguments.rooms else unused_rows(used, arguments.capabilities)
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

"""Kernels as compiled for one device, held to their gates."""

from dataclasses import dataclass
from typing import Any

from medmo_kernels.spec import Gate, OpSpec

from .cubin import Cubin, disassemble, read_cubin
from .cycles import Budget, budget
from .launches import Launch, launches

SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
"""Bytes of shared memory that one block may have, by capability."""
MIN_COPIES = 5
"""Fewest copies to shared memory in a kernel whose loop is fed by them: fewer, and the loop is not."""
COUNTED = 90
"""Capability whose cycles are counted: what `cycles` knows of matrix units is Hopper's."""


@dataclass
class Record:
    """One kernel as compiled for one device.

    Attributes:
        budget: cycles of a kernel with matrix instructions in a loop on a Hopper; None for every other.
        passes: passes of its loops, where the room knows them.
    """

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
    budget: Budget | None
    passes: int | None
    seconds: float
    faults: list[str]


def inspect(spec: OpSpec, size: str, capability: int) -> list[Record]:
    """Compile what an op launches at one size for one device, and read the cubins."""
    records = [_record(spec, launch, capability) for launch in launches(spec, size, capability)]
    if not records:
        raise RuntimeError(f"{spec.name}, size {size!r}: nothing was launched")
    return records


def _record(spec: OpSpec, launch: Launch, capability: int) -> Record:
    gate = spec.compile.gate(launch.kernel, launch.constants)
    cubin, meta = launch.compiled.asm["cubin"], launch.compiled.metadata
    found = read_cubin(cubin, gate.wide_copies or (gate.hgmma and capability == COUNTED))
    multiplies = capability == COUNTED and "dot" in launch.compiled.asm["ttgir"]
    cycles = budget(disassemble(cubin), meta.num_warps) if multiplies else None
    if cycles and not cycles.loops:  # scalar products of fp32
        cycles = None
    plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in launch.constants.items()}
    return Record(
        spec.name, launch.size, launch.kernel, plain, capability, meta.num_warps, meta.num_stages, found.registers,
        found.stack, found.spills, meta.shared, found.hgmma if gate.hgmma else 0, cycles,
        spec.compile.passes(launch.kernel, launch.numbers), launch.seconds,
        _faults(gate, found, meta.shared, capability),
    )  # fmt: skip


def _faults(gate: Gate, found: Cubin, shared: int, capability: int) -> list[str]:
    """Say in what a kernel breaks its gate."""
    faults = []
    if found.stack > gate.max_stack or (found.spills and not gate.max_stack):
        allowed = f"at most {gate.max_stack} bytes allowed"
        faults.append(f"{found.stack} bytes of stack and {found.spills} spills, {allowed}")
    if shared > SHARED_LIMIT[capability]:
        faults.append(f"{shared} bytes of shared memory, the device has {SHARED_LIMIT[capability]}")
    if gate.hgmma and capability == COUNTED and not found.hgmma:
        faults.append("no HGMMA instruction")
    if gate.wide_copies and found.narrow:
        faults.append(f"fewer than 16 bytes at a time: {', '.join(found.narrow)}")
    if gate.wide_copies and found.copies < MIN_COPIES:
        faults.append(f"{found.copies} copies to shared memory, at least {MIN_COPIES} expected")
    return faults

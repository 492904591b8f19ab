"""Faults that the checked interpreter finds in kernels, and what it has checked."""

import sys
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import triton

SKIPPED = (str(Path(triton.__file__).parent), str(Path(__file__).parent / "checked_"))
"""Beginnings of the paths of files that stand between a line of a kernel and the memory that it touches."""


class Kind(StrEnum):
    """What can be wrong with an access to memory."""

    OUTSIDE = "touches memory outside the tensor"
    STRANGER = "touches an address that is near no tensor of the launch"
    MISALIGNED = "touches an address that its dtype forbids"
    READS_PROGRAM = "reads what another program wrote"
    WRITES_PROGRAM = "writes what another program read"
    TWO_PROGRAMS = "writes what another program wrote"
    READS_LANE = "reads what another lane wrote since the last barrier"
    WRITES_LANE = "writes what another lane read since the last barrier"
    TWO_LANES = "writes what another lane wrote since the last barrier"


@dataclass(frozen=True)
class Site:
    """A line of a kernel."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{Path(self.file).parent.name}/{Path(self.file).name}:{self.line}"


def site() -> Site:
    """Return the line of the kernel that is at work."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(SKIPPED):
        frame = frame.f_back
    return Site(frame.f_code.co_filename, frame.f_lineno)


@dataclass(frozen=True)
class Fault:
    """One kind of fault, at one line of one kernel and one of its tensors; `detail` is of the first time."""

    kernel: str
    site: Site
    kind: Kind
    parameter: str
    detail: str

    def __str__(self) -> str:
        return f"{self.site} (in a launch of {self.kernel}) {self.kind}: {self.detail}"


@dataclass
class Findings:
    """Outcome of a stretch of checked launches; as text, its faults line by line.

    Attributes:
        launches: number of launches.
        loads: number of loads that touched memory.
        stores: number of stores that did.
        faults: faults found, each once for a line of a kernel.
    """

    launches: int = 0
    loads: int = 0
    stores: int = 0
    faults: list[Fault] = field(default_factory=list)

    def add(self, new: Fault) -> None:
        """Note a fault, unless this line has shown it before."""
        if all(replace(new, detail=fault.detail) != fault for fault in self.faults):
            self.faults.append(new)

    @property
    def kinds(self) -> set[Kind]:
        """Return the kinds of all faults."""
        return {fault.kind for fault in self.faults}

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults)) or "no faults"

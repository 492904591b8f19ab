"""Profile the three kernels of ours that are furthest above their floor, each alone, as a result file has them.

    python -m benchmarks.profile_kernels OUT/result.json --out OUT      # OUT/profile-N-OP.txt

The floor is what must move over the copy bandwidth measured in that run, or the products over its matrix rate. Nsight
Compute is used where it is installed and may read the counters; else torch.profiler lists the kernels.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from . import bench_kernels
from .report.ratios import floor_us
from .suite import schema
from .suite.comparison import OURS
from .suite.machine import default_device
from .suite.schema import Result, Row

COUNT = 3
ROUNDS = 10
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy")


def slowest(result: Result) -> list[Row]:
    """Return the rows of ours with the most time above the floor, the worst first, each op and direction once."""
    found: dict[tuple[str, str], Row] = {}
    ours = [row for row in result.rows if (row.level, row.way, row.status) == ("kernels", OURS, "timed")]
    floors = {row: floor_us(row, result.ceilings) for row in ours if row.direction in ("forward", "backward")}
    above = {row: row.median_us - floor for row, floor in floors.items() if floor is not None}
    for row in sorted(above, key=above.__getitem__, reverse=True):
        found.setdefault((row.subject, row.direction), row)
    return list(found.values())[:COUNT]


def call_of(subject: str, case: str, direction: str, device: torch.device) -> Callable[[], object]:
    """Build our way of a comparison, and check it."""
    known = bench_kernels.comparisons(device, short=False)
    comparison = next(c for c in known if (c.subject, c.case) == (subject, case))
    ready = next(way for way in comparison.ways if way.name == OURS).build()
    if not ready.checked.passed:
        raise RuntimeError(f"{comparison.name}: {ready.checked}")
    return ready.calls[direction]


def run_once(subject: str, case: str, direction: str) -> None:
    """Do it once between the marks that Nsight Compute looks for."""
    call = call_of(subject, case, direction, default_device())
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def by_ncu(row: Row) -> str:
    """Return what Nsight Compute counts in one call.

    Raises:
        RuntimeError: it is not installed, or may not read the counters.
    """
    tool = shutil.which("ncu")
    if tool is None:
        raise RuntimeError("ncu is not installed")
    sections = [word for section in SECTIONS for word in ("--section", section)]
    alone = [sys.executable, "-m", "benchmarks.profile_kernels", "--run", row.subject, row.case, row.direction]
    command = [tool, "--csv", "--profile-from-start", "off", *sections, *alone]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or "No kernels were profiled" in done.stdout:
        raise RuntimeError(f"ncu failed: {(done.stdout + done.stderr)[-300:].strip()}")
    return done.stdout


def by_torch(call: Callable[[], object], device: torch.device) -> str:
    """Return torch.profiler's table of what several calls ran on the device."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as profiler:
        for _ in range(ROUNDS):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return profiler.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=12)


def report(row: Row, result: Result) -> str:
    """Return the profile of one row's work."""
    times = f"median {row.median_us:.1f} us, floor {floor_us(row, result.ceilings) or 0.0:.1f} us"
    head = f"{row.subject}, {row.case}, {row.direction}: {times}"
    try:
        return f"{head}\n\n{by_ncu(row)}"
    except RuntimeError as error:
        call = call_of(row.subject, row.case, row.direction, default_device())
        return f"{head}\n{error}; torch.profiler over {ROUNDS} calls instead\n\n{by_torch(call, default_device())}"


def main(argv: Sequence[str] | None = None) -> int:
    """Profile; on a machine without a GPU say so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, help="folder for the texts")
    parser.add_argument("--run", nargs=3, metavar=("OP", "CASE", "DIRECTION"), help="do this once, under a profiler")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no CUDA device: there is no kernel to profile")
        return 0
    if options.run:
        run_once(*options.run)
        return 0
    if options.result is None or options.out is None:
        parser.error("a result file and --out are needed")
    result = schema.read(options.result)
    for number, row in enumerate(slowest(result), 1):
        path = options.out / f"profile-{number}-{row.subject}-{row.direction}.txt"
        path.write_text(report(row, result) + "\n", encoding="utf-8")
        print(f"{row.subject}, {row.case}, {row.direction}: {path}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Time several ways of doing one thing, interleaved, so that a slow minute of the machine hits all of them alike."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

FLUSH_BYTES = 256 * 2**20
"""Written between runs on a GPU, several times its cache: every run then starts from memory."""


@dataclass(frozen=True)
class Timing:
    """Durations of one way, in microseconds.

    Attributes:
        samples_us: each of them, in the order taken.
        median_us: middle of them.
        p20_us: a fifth of them were faster.
        p80_us: a fifth of them were slower.
        peak_bytes: most memory allocated on the GPU beyond what stood there before; 0 on the CPU.
    """

    samples_us: tuple[float, ...]
    median_us: float
    p20_us: float
    p80_us: float
    peak_bytes: int


def time_ways(
    ways: Mapping[str, Callable[[], object]], device: torch.device, *, repeats: int = 30, budget_s: float = 4.0
) -> dict[str, Timing]:
    """Time functions of no arguments side by side: one run of each, then one more of each, and so on.

    Args:
        ways: by name; each was called at least once before (compiled, warmed up).
        device: where they run.
        repeats: rounds at the most.
        budget_s: no new round is begun after so many seconds; three rounds are always made.

    Returns:
        One timing per way.
    """
    durations: dict[str, list[float]] = {name: [] for name in ways}
    peaks = {name: _peak(way, device) for name, way in ways.items()}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    began = time.perf_counter()
    enabled = gc.isenabled()
    gc.disable()
    try:
        for round_number in range(repeats):
            if round_number >= 3 and time.perf_counter() - began > budget_s:
                break
            for name, way in ways.items():
                if flush is not None:
                    flush.zero_()
                durations[name].append(_once(way, device))
    finally:
        if enabled:
            gc.enable()
    return {name: _summary(values, peaks[name]) for name, values in durations.items()}


def _once(way: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        way()
        return 1e6 * (time.perf_counter() - started)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    way()
    stop.record()
    stop.synchronize()
    return 1e3 * start.elapsed_time(stop)


def _peak(way: Callable[[], object], device: torch.device) -> int:
    if device.type != "cuda":
        way()
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    way()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _summary(values: list[float], peak_bytes: int) -> Timing:
    ordered = sorted(values)
    fifth = max(0, round(0.2 * (len(ordered) - 1)))
    return Timing(tuple(values), statistics.median(ordered), ordered[fifth], ordered[-1 - fifth], peak_bytes)

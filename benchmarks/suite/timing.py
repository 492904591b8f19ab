"""Time several ways of doing one thing, interleaved, so that a slow minute of the machine hits all of them equally."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

FLUSH_BYTES = 256 * 2**20
"""Written between runs on a GPU, several times its cache: every run then starts from memory."""
WARM_UP_ROUNDS = 5
"""On a GPU, of which no more are begun once they took a tenth of the time: clocks and allocator settle."""


@dataclass(frozen=True)
class Timing:
    """Durations of one way, in microseconds.

    Attributes:
        samples_us: each of them, in the order taken.
        median_us: middle of them.
        p20_us: a fifth of them were faster.
        p80_us: a fifth of them were slower.
        peak_bytes: most memory allocated beyond what stood there before; 0: not counted.
    """

    samples_us: tuple[float, ...]
    median_us: float
    p20_us: float
    p80_us: float
    peak_bytes: int


def time_ways(
    ways: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    repeats: int = 30,
    budget_s: float = 4.0,
    counts_cpu_memory: bool = False,
) -> dict[str, Timing]:
    """Time functions of no arguments side by side: one run of each, then one more of each, and so on.

    Args:
        ways: names -> functions, each of which was called at least once before (compiled, warmed up).
        device: where they run.
        repeats: rounds at the most.
        budget_s: no new round is begun after so many seconds; three rounds are always made.
        counts_cpu_memory: count the peak on the CPU too, in one more call that takes 0.1 ms longer per operation.

    Returns:
        One timing per way.
    """
    durations: dict[str, list[float]] = {name: [] for name in ways}
    count = _peak_cuda if device.type == "cuda" else _peak_cpu if counts_cpu_memory else _uncounted
    peaks = {name: count(way, device) for name, way in ways.items()}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    if flush is not None:
        _warm_up(ways, device, budget_s / 10)
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


def _warm_up(ways: Mapping[str, Callable[[], object]], device: torch.device, budget_s: float) -> None:
    began = time.perf_counter()
    for _ in range(WARM_UP_ROUNDS):
        for way in ways.values():
            way()
        torch.cuda.synchronize(device)
        if time.perf_counter() - began > budget_s:
            break


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


def _uncounted(way: Callable[[], object], device: torch.device) -> int:
    way()
    return 0


def _peak_cpu(way: Callable[[], object], device: torch.device) -> int:
    """Add up what torch's allocator gave and took back during a call; NumPy's and SciPy's memory is not its own.

    The older of torch's two profilers: the newer one writes two lines to the terminal each time.
    """
    torch.autograd._enable_profiler_legacy(
        ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig())
    )
    try:
        way()
    finally:
        threads = torch.autograd._disable_profiler_legacy()
    now = most = 0
    for event in (event for thread in threads for event in thread if event.kind() == "memory_alloc"):
        now += event.cpu_memory_usage()
        most = max(most, now)
    return most


def _peak_cuda(way: Callable[[], object], device: torch.device) -> int:
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

"""One step under torch's profiler: where its time goes, and on a GPU its memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from medmo_core.durable import write_text

from ..distributed.world import World

TOP_OPS = 30
SNAPSHOT_ENTRIES = 200_000


@contextmanager
def profiled(folder: Path, world: World, *, wanted: bool) -> Iterator[None]:
    """Profile what happens inside, on the main process.

    Writes into `folder`: trace.json (for chrome://tracing or https://ui.perfetto.dev), top_ops.txt (a table), and on
    CUDA memory.pickle, PyTorch's snapshot of every allocation. That last file is a pickle for PyTorch's own viewer
    (https://pytorch.org/memory_viz); nothing here reads it.

    Args:
        folder: made if need be.
        world: only its main process profiles.
        wanted: off: do nothing.
    """
    if not (wanted and world.is_main):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = world.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    if on_gpu:
        torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_ENTRIES)
    try:
        with profile(activities=activities, record_shapes=True, profile_memory=True) as found:
            yield
            if on_gpu:
                torch.cuda.synchronize(world.device)
        if on_gpu:
            torch.cuda.memory._dump_snapshot(str(folder / "memory.pickle"))
    finally:
        if on_gpu:
            torch.cuda.memory._record_memory_history(enabled=None)
    found.export_chrome_trace(str(folder / "trace.json"))
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=by, row_limit=TOP_OPS, max_name_column_width=60)
    write_text(folder / "top_ops.txt", table + "\n")

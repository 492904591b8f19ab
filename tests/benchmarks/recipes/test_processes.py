"""Steps in several processes are those of one, a process that fails is told of, and none outlives the run."""

import gc
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.recipes import processes as b
from benchmarks.suite.comparison import measure
from benchmarks.suite.schema import Row

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
MAKE = """
import sys, time, torch
from benchmarks.recipes import processes as b

if __name__ == "__main__":
    pool = b.Pool(2, b.new_config(torch.device("cpu"), True))
    print(*(process.pid for process in pool._processes), flush=True)
    pool.step("ours")
    print("taken", flush=True)
    time.sleep(60)
"""


def rows() -> dict[str, Row]:
    """Measure the short comparison; way -> row."""
    (comparison,) = b.comparisons(CPU, short=True)
    return {row.way: row for row in measure(replace(comparison, seconds=0.0, repeats=3), CPU)}


def test_two_processes_take_the_step_of_one_and_leave() -> None:
    before = set(multiprocessing.active_children())
    found = rows()
    assert {way: (row.status, row.axis, row.at) for way, row in found.items()} == {
        way: ("timed", "processes", 2) for way in ("ours", "torch DDP")
    }
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


def test_another_step_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth is that of another share of the documents: as if a process had left some out."""
    honest = b.one_process
    monkeypatch.setattr(b, "one_process", lambda config: honest(config.change(train={"docs_per_step": 3})))
    for row in rows().values():
        assert row.status == "wrong" and "from loss and gradient norm of one process" in row.reason


def test_a_process_that_fails_is_told_of() -> None:
    pool = b.Pool(1, b.new_config(CPU, True).change(data={"sources": {"embedded:nonsense": 1.0}}))
    with pytest.raises(RuntimeError, match="nonsense.*in process 0 of 1"):
        pool.step("ours")
    pool = b.Pool(2, b.new_config(CPU, True))
    pool.step("ours")
    os.kill(pool._processes[1].pid or 0, signal.SIGSTOP)  # so that it is there when it is told to take the step
    threading.Timer(0.2, pool._processes[1].kill).start()
    with pytest.raises(RuntimeError, match="process 1 of 2 ended with status -9|in process 0 of 2"):
        pool.step("ours")


def test_processes_end_with_the_one_that_made_them(tmp_path: Path) -> None:
    script = tmp_path / "make.py"
    script.write_text(MAKE, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    maker = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert maker.stdout is not None
    pids = [int(word) for word in maker.stdout.readline().split()]
    assert len(pids) == 2 and maker.stdout.readline() == "taken\n"
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    deadline = time.monotonic() + 20
    while any(_lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_lives(pid) for pid in pids)


def _lives(pid: int) -> bool:
    """Whether a process runs: not gone, and not merely unburied."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_listing_starts_nothing_and_too_few_gpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(b, "Pool", pytest.fail)
    monkeypatch.setattr(b, "one_process", pytest.fail)
    listed = b.comparisons(CPU, short=False)
    assert [comparison.at for comparison in listed] == [1, 2] and len({c.name for c in listed}) == 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    one, two = b.comparisons(torch.device("cuda"), short=False)
    assert all(way.absent == "" for way in one.ways) and one.apart
    assert all(way.absent == "needs 2 GPUs, here are 1" for way in two.ways)


def test_the_truth_is_made_of_the_same_weights() -> None:
    config = b.new_config(CPU, True)
    (loss, norm), *_ = b.one_process(config)
    step = b.new_steps("ours", config, b.World(0, 1, CPU))
    assert step(0) == pytest.approx((loss, norm), rel=b.BOUND["cpu"]) and math.isfinite(norm)
    assert step(1)[0] < loss

"""The frame of the suite: what is timed was checked, ways are interleaved, and pytest-benchmark gets our durations."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.suite import schema
from benchmarks.suite.comparison import Comparison, Ready, Way, measure
from benchmarks.suite.schema import Check

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
RIGHT = Check("truth", 0.0, 1.0)


def comparison(*ways: Way, **settings: object) -> Comparison:
    """Compare at next to no cost."""
    fixed = {"level": "kernels", "subject": "nothing", "case": "small", "dtype": "float32", "directions": ("forward",)}
    return Comparison(**{**fixed, "ways": ways, "seconds": 0.0, **settings})  # type: ignore[arg-type]


def way(name: str, call: Callable[[], object] = lambda: None, checked: Check = RIGHT) -> Way:
    """Return a way that is ready at once."""
    return Way(name, lambda: Ready({"forward": call}, checked), "ours" if name == "ours" else "peer")


def raising(error: Exception) -> Callable[[], Ready]:
    """Return a build that fails."""

    def build() -> Ready:
        raise error

    return build


def test_only_what_passed_its_check_has_a_figure() -> None:
    ways = (
        way("ours"),
        way("off", checked=Check("truth", 2.0, 1.0)),
        way("not a number", checked=Check("truth", float("nan"), 1.0)),
        Way("no such shape", raising(NotImplementedError("no shared prompts"))),
        Way("large", raising(torch.OutOfMemoryError("no room"))),
        Way("broken", raising(ValueError("boom"))),
        Way("elsewhere", raising(AssertionError("built although absent")), absent="runs on a GPU only"),
    )
    rows = {row.way: row for row in measure(comparison(*ways), CPU)}
    told = {name: (row.status, row.reason) for name, row in rows.items()}
    assert told == {
        "ours": ("timed", ""),
        "off": ("wrong", "off by 2 from truth, allowed 1"),
        "not a number": ("wrong", "off by nan from truth, allowed 1"),
        "no such shape": ("absent", "cannot: no shared prompts"),
        "large": ("absent", "cannot: no room"),
        "broken": ("wrong", "ValueError: boom"),
        "elsewhere": ("absent", "runs on a GPU only"),
    }
    assert all(row.median_us == 0 for row in rows.values() if row.status != "timed")


@pytest.mark.parametrize("error", [NotImplementedError("no such shape"), torch.OutOfMemoryError("no room")])
def test_ours_may_not_be_absent(error: Exception) -> None:
    (row,) = measure(comparison(Way("ours", raising(error), "ours")), CPU)
    assert (row.status, row.reason) == ("wrong", f"cannot: {error}")


def test_ours_must_have_every_direction() -> None:
    rows = measure(comparison(way("ours"), way("peer"), directions=("forward", "backward")), CPU)
    told = {(row.way, row.direction): row.status for row in rows}
    assert told == {("ours", "forward"): "wrong", ("ours", "backward"): "wrong", ("peer", "forward"): "timed"}


def test_ways_take_turns() -> None:
    calls: list[str] = []
    rows = measure(comparison(*(way(n, lambda n=n: calls.append(n)) for n in ("ours", "peer")), repeats=4), CPU)
    timed = calls[-2 * len(rows[0].samples_us) :]
    assert timed == ["ours", "peer"] * len(rows[0].samples_us) and len(rows[0].samples_us) >= 3
    assert [row.median_us for row in rows] == [statistics.median(row.samples_us) for row in rows]


def test_ways_apart_are_never_there_together_and_ours_is_timed_twice() -> None:
    alive: set[str] = set()
    most: list[int] = []

    class Model:
        def __init__(self, name: str) -> None:
            self.name = name
            alive.add(name)
            most.append(len(alive))

        def __call__(self) -> None:
            pass

        def __del__(self) -> None:
            alive.discard(self.name)

    def heavy(name: str) -> Way:
        return Way(name, lambda: Ready({"forward": Model(name)}, RIGHT), "ours" if name == "ours" else "peer")

    rows = measure(comparison(heavy("ours"), heavy("peer"), apart=True), CPU)
    assert [row.way for row in rows] == ["ours", "peer", "ours, again"] and max(most) == 1
    measure(comparison(heavy("ours"), heavy("peer")), CPU)
    assert max(most) == 2, "the check above would notice"


BENCHMARK = """
import time
from benchmarks.suite.schema import Check
from benchmarks.suite.comparison import Comparison, Ready, Way, Work

def ready(seconds, error=0.0):
    return lambda: Ready({"forward": lambda: time.sleep(seconds)}, Check("truth", error, 1.0))

def comparisons(device, *, short):
    ways = (Way("ours", ready(0.001), "ours"), Way("peer", ready(0.004)), Way("gone", ready(0), absent="not installed"))
    wrong = (Way("ours", ready(0.001, 3.0), "ours"),)
    made = [Comparison("kernels", "sleep", "small", "float32", ("forward",), ways, {"forward": Work(flops=7.0)})]
    return made + [Comparison("kernels", "sleep", "wrong", "float32", ("forward",), wrong)]

def test_sleep(collect):
    pass
"""


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., subprocess.CompletedProcess[str]]]:
    """A folder with a benchmark file, and pytest in it."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "bench_sleep.py").write_text(BENCHMARK, encoding="utf-8")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # of this very run
    environment = own | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-p", "benchmarks.conftest", "-p", "no:cacheprovider",
                   "--import-mode=importlib", "bench_sleep.py", "--out", "result.json", *words]  # fmt: skip
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return folder, run


def test_pytest_benchmark_gets_the_durations_of_our_timer(
    collected: tuple[Path, Callable[..., subprocess.CompletedProcess[str]]],
) -> None:
    folder, run = collected
    (folder / "result.json").unlink(missing_ok=True)
    done = run("--benchmark-json", "collected.json", "-rs")
    assert done.returncode == 1 and "off by 3 from truth" in done.stdout, done.stdout + done.stderr
    assert "not installed" in done.stdout and "2 passed, 1 skipped, 1 error" in done.stdout
    result = schema.read(folder / "result.json")
    timed = {row.way: row for row in result.rows if row.status == "timed"}
    assert set(timed) == {"ours", "peer"} and timed["peer"].median_us > timed["ours"].median_us > 1000
    assert result.ceilings["copy_bytes_per_s"] > 1e8 and result.machine.versions["torch"] == torch.__version__
    entries = json.loads((folder / "collected.json").read_text())["benchmarks"]
    assert len(entries) == 2
    for entry in entries:
        row = timed["peer" if "peer" in entry["name"] else "ours"]
        assert 1e6 * entry["stats"]["median"] == pytest.approx(row.median_us, rel=1e-3)
        assert entry["stats"]["rounds"] == len(row.samples_us)
        assert entry["extra_info"]["p20_us"] == pytest.approx(row.p20_us, rel=1e-3)
        assert entry["extra_info"]["flops"] == 7.0 and entry["group"].startswith("kernels / sleep / small")


def test_a_stopped_run_goes_on_in_its_file_and_another_machines_is_refused(
    collected: tuple[Path, Callable[..., subprocess.CompletedProcess[str]]],
) -> None:
    folder, run = collected
    path = folder / "result.json"
    path.unlink(missing_ok=True)
    assert run("--budget-s", "0", "-k", "small").returncode == 0
    assert schema.read(path).rows == () and schema.read(path).left_out == ("sleep, small",)
    assert run("-k", "small", "--short").returncode != 0, "the short form may not add to a whole run's file"
    assert run("-k", "small").returncode == 0
    result = schema.read(path)
    assert {row.way for row in result.rows} == {"ours", "peer", "gone"} and result.left_out == ()
    values = json.loads(path.read_text())
    values["machine"]["device"] = "another"
    path.write_text(json.dumps(values), encoding="utf-8")
    refused = run("-k", "small")
    assert refused.returncode != 0 and "of another machine" in refused.stdout + refused.stderr
    path.unlink()

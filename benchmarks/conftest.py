"""pytest-benchmark as the collector of the suite: each way of each comparison is one of its entries.

    python -m benchmarks                       # the whole suite on this machine, results under benchmarks/results
    python -m pytest benchmarks/bench_kernels.py -k patch_embed      # a part of it, the same files

From a way to the JSON: pytest asks each benchmark file for its `comparisons` and makes one entry of each way and
direction. The first entry of a comparison measures all of it: every way is built, checked, then timed in turns with the
others (`suite.comparison.measure`). The rows go into the result file (`suite.schema`), which is written after each
comparison, so that a stopped run loses nothing. Each entry then enters the durations of its row into
pytest-benchmark (fixture `collect`), for its table and its `--benchmark-json`; a wrong way fails, an absent one skips.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from .suite import schema
from .suite.comparison import Comparison, measure
from .suite.machine import ceilings, default_device, describe, folder_name
from .suite.schema import Result, Row

RESULTS = Path(__file__).with_name("results")
SHORT_SECONDS = 0.02
"""Of timing per comparison in the short form: three rounds, whatever they take."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's options."""
    group = parser.getgroup("medmo benchmarks")
    group.addoption("--out", type=Path, help="result file; default benchmarks/results/DEVICE/DATE-COMMIT.json")
    group.addoption("--short", action="store_true", help="smallest cases, few repeats: shows that it runs, no more")
    group.addoption("--budget-s", type=float, default=float("inf"), help="no comparison is begun after so many seconds")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Ask a benchmark file for its comparisons; one entry for each way and direction."""
    if "row" not in metafunc.fixturenames:
        return
    config = metafunc.config
    module: Any = metafunc.module
    found: list[Comparison] = module.comparisons(default_device(), short=config.getoption("--short"))
    entries = [
        pytest.param((comparison, way.name, direction), id=f"{comparison.name}-{direction}-{way.name}")
        for comparison in found
        for direction in comparison.directions
        for way in comparison.ways
    ]
    metafunc.parametrize("row", entries, indirect=True)


@dataclass
class Collection:
    """The run so far, and its file."""

    path: Path
    result: Result
    device: torch.device
    budget_s: float
    began: float = field(default_factory=time.perf_counter)
    measured: dict[str, list[Row]] = field(default_factory=dict)

    def rows_of(self, comparison: Comparison) -> list[Row]:
        """Measure a comparison unless it was, and store its rows in place of older ones of its kind."""
        key = f"{comparison.level} {comparison.name} {comparison.dtype}"
        if key not in self.measured:
            if time.perf_counter() - self.began > self.budget_s:
                left_out = (*self.result.left_out, comparison.name)
                self.result = replace(self.result, left_out=tuple(dict.fromkeys(left_out)))
                self.measured[key] = []
            else:
                self.measured[key] = measure(comparison, self.device)
                places = {row.place for row in self.measured[key]}
                kept = (row for row in self.result.rows if row.place not in places)
                left_out = tuple(name for name in self.result.left_out if name != comparison.name)
                self.result = replace(self.result, rows=(*kept, *self.measured[key]), left_out=left_out)
            schema.write(self.result, self.path)
        return self.measured[key]


@pytest.fixture(scope="session")
def run(pytestconfig: pytest.Config) -> Collection:
    """Open the result file: a new one, or that of an earlier part of the same run."""
    device, short = default_device(), bool(pytestconfig.getoption("--short"))
    machine, best = describe(device), ceilings(device)
    named = f"{machine.date[:10]}-{machine.commit}{'-changed' if machine.changed else ''}{'-short' if short else ''}"
    path = pytestconfig.getoption("--out") or RESULTS / folder_name(machine) / f"{named}.json"
    result = Result(machine, short, best)
    if path.exists():
        before = schema.read(path)
        if replace(before.machine, date=machine.date) != machine or before.short != short:
            raise pytest.UsageError(f"{path} is of another machine, commit or form: name another file with --out")
        highest = {name: max(rate, before.ceilings.get(name, 0.0)) for name, rate in best.items()}
        result = replace(before, ceilings=highest)
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in result.ceilings.items())
    print(f"\n{machine.device}, commit {machine.commit}, {rates}\nresults: {path}", flush=True)
    budget = pytestconfig.getoption("--budget-s")
    return Collection(path, result, device, float("inf") if budget is None else float(budget))


@pytest.fixture
def row(request: pytest.FixtureRequest, run: Collection) -> Row:
    """Return the row of one entry; skips where the way cannot run here, fails where it is wrong."""
    comparison, way, direction = request.param
    if run.result.short:
        comparison = replace(comparison, seconds=SHORT_SECONDS, repeats=3)
    rows = run.rows_of(comparison)
    if not rows:
        pytest.skip("no time left")
    found = next((row for row in rows if (row.way, row.direction) == (way, direction)), None)
    if found is None:
        pytest.skip(f"{way} has no {direction}")
    if found.status == "absent":
        pytest.skip(found.reason)
    if found.status == "wrong":
        pytest.fail(f"{way}: {found.reason}", pytrace=False)
    return found


@pytest.fixture
def collect(row: Row, benchmark: BenchmarkFixture) -> Row:
    """Enter the durations of a row into pytest-benchmark; percentiles and what was counted are extra information."""
    benchmark.group = " / ".join(row.place)
    benchmark.pedantic(lambda: None)  # opens the entry
    if benchmark.stats:  # absent under --benchmark-disable
        benchmark.stats.stats.data = [1e-6 * sample for sample in row.samples_us]
    counted = ("p20_us", "p80_us", "peak_bytes", "bytes", "flops", "items", "unit", "role")
    benchmark.extra_info.update({name: getattr(row, name) for name in counted})
    benchmark.extra_info["error"] = row.checked.error if row.checked else None
    return row

"""Results planted by hand, for the report, the comparison and the studies."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.studies.quickstart_runs.records import RunRecord
from benchmarks.suite.schema import Check, Machine, Result, Row

MACHINE = Machine("a processor", "cpu", 0, "", "", 2**30, 2, 1, {"torch": "2.13", "liger-kernel": ""}, "abc123def",
                  False, "2026-01-02T00:00:00+00:00")  # fmt: skip
CEILINGS = {"copy_bytes_per_s": 1e10, "matmul_float32_flops_per_s": 1e11}


class Planter:
    """Makes rows and results of given durations."""

    machine = MACHINE

    @staticmethod
    def row(way: str, samples: Sequence[float] = (), *, reason: str = "", status: Any = "absent", **place: Any) -> Row:
        """Return a row: timed with durations in microseconds, else without a figure."""
        ours = way.removesuffix(", again") == "ours"
        where = {"level": "kernels", "subject": "giou", "case": "7 pairs", "dtype": "float32", "direction": "forward",
                 "role": "ours" if ours else "peer", **place}  # fmt: skip
        if not samples:
            return Row(way=way, status=status, reason=reason, **where)
        ordered = sorted(samples)
        low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
        figures = {"samples_us": tuple(samples), "median_us": middle, "p20_us": low, "p80_us": high}
        return Row(way=way, status="timed", checked=Check("truth", 1e-7, 1e-6), **figures, **where)

    @staticmethod
    def result(*rows: Row, short: bool = False, **machine: Any) -> Result:
        """Return a result of those rows."""
        return Result(replace(MACHINE, **machine), short, CEILINGS, rows)


@pytest.fixture
def plant() -> Planter:
    """Return the maker of planted rows and results."""
    return Planter()


@pytest.fixture
def steady() -> Callable[[float], tuple[float, ...]]:
    """Return a maker of 21 durations within 2 % of a middle one."""
    return lambda middle: tuple(middle * (1 + 0.002 * ((7 * i) % 21 - 10)) for i in range(21))


def stored_score(value: float, baseline: float | None = None, gain_low: float = 0.1, **counts: Any) -> dict[str, Any]:
    """Return a score as metrics.json has it: its interval reaches 0.1 to both sides."""
    found = {"value": value, "low": value - 0.1, "high": value + 0.1, "baseline": baseline, **counts}
    if baseline is not None:
        found |= {"gain": value - baseline, "gain_low": gain_low, "gain_high": 0.5}
    return found


@pytest.fixture
def make_run() -> Callable[..., RunRecord]:
    """Return a function that makes the record of a run by its IoU after instruct."""

    def make(seed: int, iou: float, layout: str = "2x1", isa: str = "machine", **fields: Any) -> RunRecord:
        instruct = {
            "grounding_iou": stored_score(iou, 0.2, iou - 0.35),
            "grounding_denied": stored_score(0.1),
            "grounding_invented": stored_score(0.05),
            "vqa_accuracy": stored_score(0.7, 0.5),
            "report_fact_f1": stored_score(0.45, 0.4),
        }
        reinforce = {
            "grounding_iou": stored_score(iou + 0.05, 0.2),
            "vqa_accuracy": stored_score(0.7 + iou / 10, 0.5),
            "report_fact_f1": stored_score(0.5, 0.4),
        }
        values: dict[str, Any] = {
            "stages": {"instruct": instruct, "reinforce": reinforce},
            "training_iou": stored_score(iou + 0.2, 0.2),
            "changes": {
                "grounding_iou": {"difference": 0.05, "low": 0.01, "high": 0.09},
                "vqa_accuracy": {"difference": iou / 10, "low": -0.02, "high": 0.1},
            },
            "verdicts": {"boxes beat a constant": iou > 0.35, "pigs fly": False},
            "seconds": {"align": 10.0, "instruct": 100.0 + seed},
            "cpu_seconds": {"align": 20.0, "instruct": 200.0 + seed},
            "wall_s": 600.0 + 60 * seed,
            "cpu_s": 1200.0,
            "machine": {"cpu": "A processor", "cores": 2, "instructions": "AVX2", "torch": "2.13.0", "commit": "abc",
                        "changed": False, "date": "2026-01-01"},
        }  # fmt: skip
        return RunRecord(seed=seed, layout=layout, isa=isa, **{**values, **fields})

    return make

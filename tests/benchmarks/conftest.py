"""Results planted by hand, for the report and the comparison."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

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

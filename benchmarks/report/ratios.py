"""Ours beside the others: rows of one place, ratios of medians with intervals, shares of what the machine can do."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ..suite.comparison import OURS
from ..suite.schema import Row

RESAMPLES = 2000
FEWEST = 3
"""Durations below which nothing can be said of their spread."""
AGAIN = ", again"
"""Ends the name of a way that was timed a second time; it shows what the machine did meanwhile and is no peer."""

Standing = Literal["faster", "level", "slower"]


@dataclass(frozen=True)
class Ratio:
    """One median over another, above 1 where the second is the faster, with a 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def standing(self) -> Standing:
        """How the second stands; level: the interval holds 1."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "level"

    def __str__(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Return the ratio of the medians of two ways' durations.

    Ways timed side by side have as many durations each, and are resampled by round: what hit a whole round cancels.
    """
    a, b = np.asarray(above), np.asarray(below)
    value = float(np.median(a) / np.median(b))
    if min(len(a), len(b)) < FEWEST:
        return Ratio(value, 0.0, float("inf"))
    draw = np.random.default_rng(0)
    at_a = draw.integers(len(a), size=(RESAMPLES, len(a)))
    at_b = at_a if len(a) == len(b) else draw.integers(len(b), size=(RESAMPLES, len(b)))
    drawn = np.median(a[at_a], axis=1) / np.median(b[at_b], axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Ratio(value, float(low), float(high))


@dataclass(frozen=True)
class Contest:
    """The rows of one place.

    Attributes:
        rows: one per way, in the order of the result.
    """

    rows: tuple[Row, ...]

    @property
    def place(self) -> tuple[str, str, str, str, str]:
        """Level, subject, case, dtype, direction."""
        return self.rows[0].place

    @property
    def name(self) -> str:
        """Subject, case and direction."""
        _, subject, case, _, direction = self.place
        return f"{subject}, {case}, {direction}"

    @property
    def ours(self) -> Row | None:
        """Our row, timed or not."""
        return next((row for row in self.rows if row.way == OURS), None)

    @property
    def peers(self) -> list[Row]:
        """Return the others that have a figure, fastest first: neither ours, nor ours again, nor the reference."""
        found = [r for r in self.rows if r.role == "peer" and r.status == "timed" and not r.way.endswith(AGAIN)]
        return sorted(found, key=lambda row: row.median_us)

    @cached_property
    def ratios(self) -> dict[str, Ratio]:
        """Each other way's median over ours; empty where ours has no figure."""
        ours = self.ours
        if ours is None or ours.status != "timed":
            return {}
        others = (row for row in self.rows if row.status == "timed" and row.way != OURS)
        return {row.way: ratio(row.samples_us, ours.samples_us) for row in others}

    @property
    def headline(self) -> tuple[Row, Ratio] | None:
        """Return the best peer and the ratio to it; None where none has a figure, or ours has none."""
        if not self.peers or not self.ratios:
            return None
        return self.peers[0], self.ratios[self.peers[0].way]


def contests(rows: Iterable[Row]) -> list[Contest]:
    """Group rows by place; levels and subjects stand together, all in the order in which they were first measured."""
    places: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        places.setdefault(row.place, []).append(row)
    first = {(level, subject): number for number, (level, subject, *_) in reversed(list(enumerate(places)))}
    levels = list(dict.fromkeys(level for level, *_ in places))
    ordered = sorted(places, key=lambda place: (levels.index(place[0]), first[place[0], place[1]]))
    return [Contest(tuple(places[place])) for place in ordered]


def floor_us(row: Row, ceilings: Mapping[str, float]) -> float | None:
    """Return the least time that the measured ceilings allow for the counted work; None where nothing was counted."""
    products = ceilings.get(f"matmul_{row.dtype}_flops_per_s")
    if not (row.bytes or row.flops) or (row.flops and products is None):
        return None
    return 1e6 * max(row.bytes / ceilings["copy_bytes_per_s"], row.flops / products if products else 0.0)


def ceiling_share(row: Row, ceilings: Mapping[str, float]) -> float | None:
    """Return that least time over the median; None where there is no figure, or nothing was counted."""
    floor = floor_us(row, ceilings)
    return None if floor is None or row.status != "timed" else floor / row.median_us

"""The targets that the project set itself (`targets.json`), beside what was measured."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from medmo_recipes.settings.section import Section, require

from ..suite.schema import Level, Row
from .ratios import Contest, ceiling_share

SLACK = 0.05
"""Share of a predicted figure by which a measured one may differ from it."""
FILE = Path(__file__).with_name("targets.json")


@dataclass(frozen=True)
class Prediction(Section):
    """An expectation from counted instructions, written down before any GPU had run the kernel.

    Attributes:
        low: least figure expected, in the target's measure.
        high: largest figure expected; equal to `low` where only one figure was predicted.
        date: day of the prediction, ISO 8601; the kernel may have changed since.
        about: what it speaks of, where that is not quite the target's comparison.
    """

    low: float
    high: float
    date: str
    about: str = ""

    def check(self) -> None:
        """Raise ConfigError where the figures are in the wrong order, or the day is none."""
        require(self.low <= self.high, "prediction.high", self.high, f"at least low, {self.low}")
        try:
            date.fromisoformat(self.date)
        except ValueError:
            require(False, "prediction.date", self.date, "a day such as 2026-11-24")

    def judged(self, figure: float) -> str:
        """Say where a measured figure lies; within `SLACK` of the ends it is as predicted."""
        if figure < (1 - SLACK) * self.low:
            return "below what was predicted"
        return "above what was predicted" if figure > (1 + SLACK) * self.high else "as predicted"


@dataclass(frozen=True)
class Target(Section):
    """A figure to reach. `case`, `direction` and `against` are patterns, `*` for anything.

    Attributes:
        level: part of the suite.
        subject: op, module or recipe; a pattern too.
        case: case of the comparisons meant; the target is met when all of them meet it.
        direction: direction of those comparisons.
        kind: kind of the device.
        must: the least that is asked for; of "us" the most.
        source: where it stands, or why this much.
        against: the other way; of several the fastest. Empty where it is about ours alone.
        measure: "ratio" of medians, other over ours; "memory": of peaks, other over ours; "share" of the ceiling;
            "items": per second; "us": the median.
        stretch: more would be welcome; 0: nothing.
        predicted: what instruction counts let expect; None: nothing was predicted.
    """

    level: Level
    subject: str
    case: str
    direction: str
    kind: Literal["cpu", "cuda"]
    must: float
    source: str
    against: str = ""
    measure: Literal["ratio", "memory", "share", "items", "us"] = "ratio"
    stretch: float = 0.0
    predicted: Prediction | None = None

    def check(self) -> None:
        """Raise ConfigError where a ratio names nobody to compare with."""
        compares = self.measure in ("ratio", "memory")
        require(bool(self.against) == compares, "target.against", self.against, f"a way for {self.measure}, or none")

    def speaks_of(self, level: str, subject: str, case: str, direction: str) -> bool:
        """Say whether a comparison is meant."""
        pairs = ((subject, self.subject), (case, self.case), (direction, self.direction))
        return level == self.level and all(fnmatchcase(value, pattern) for value, pattern in pairs)

    def names(self, way: str) -> bool:
        """Say whether a way is one to compare with."""
        return fnmatchcase(way, self.against)

    def reached_by(self, value: float) -> bool:
        """Say whether a figure is enough."""
        return value <= self.must if self.measure == "us" else value >= self.must

    def shown(self, value: float) -> str:
        """Write a figure in this target's unit."""
        units = {"ratio": "{:.3g}x", "memory": "{:.3g}x less memory", "share": "{:.0%} of the ceiling",
                 "items": "{:.0f} items/s", "us": "{:.0f} us"}  # fmt: skip
        return units[self.measure].format(value)


@dataclass(frozen=True)
class Judgement:
    """The figure of a result for a target.

    Attributes:
        target: target that was looked up.
        figure: the least favourable of all that it speaks of; None: not measured.
        contest: comparison that the figure is from.
        other: name of the way compared with.
        text: the figure as shown, or why ours has none.
        measured, meant: how many comparisons gave a figure, and how many it speaks of.
    """

    target: Target
    figure: float | None = None
    contest: Contest | None = None
    other: str = ""
    text: str = ""
    measured: int = 0
    meant: int = 0

    @property
    def verdict(self) -> str:
        """Met, missed, or not measured yet."""
        if self.figure is None:
            return "not measured yet"
        return "met" if self.target.reached_by(self.figure) else "missed"

    @property
    def prediction(self) -> str:
        """What was predicted and when, and where the figure lies beside it; empty where nothing was predicted."""
        expected = self.target.predicted
        if expected is None:
            return ""
        low, high = self.target.shown(expected.low), self.target.shown(expected.high)
        text = f"predicted {low if low == high else f'{low} to {high}'} ({expected.date})"
        if expected.about:
            text += f", {expected.about}"
        return text if self.figure is None else f"{text}; measured {expected.judged(self.figure)}"


def read(path: Path = FILE) -> list[Target]:
    """Read the targets.

    Raises:
        ConfigError, TypeError: one is not of this shape.
    """
    return [_target(values) for values in json.loads(path.read_text(encoding="utf-8"))]


def _target(values: dict[str, Any]) -> Target:
    predicted = values.pop("predicted", None)
    return Target(**values, predicted=None if predicted is None else Prediction(**predicted))


def judge(target: Target, contests: Sequence[Contest], ceilings: Mapping[str, float]) -> Judgement:
    """Look up a target in a result's comparisons."""
    meant = [contest for contest in contests if target.speaks_of(*contest.place[:3], contest.place[4])]
    figures: list[tuple[float, Contest, Row]] = []
    for contest in meant:
        row = contest.ours
        if row is None or row.status != "timed":
            return Judgement(target, contest=contest, text=f"ours has no figure ({contest.name})", meant=len(meant))
        if not target.against:
            value = _own(target, row, ceilings)
            if value is not None:
                figures.append((value, contest, row))
            continue
        others = [peer for peer in contest.rows if target.names(peer.way) and peer.role != "ours"]
        timed = sorted((o for o in others if o.status == "timed"), key=lambda other: other.median_us)
        if timed:
            figures.append((_against(target, contest, row, timed[0]), contest, timed[0]))
    if not figures:
        return Judgement(target, meant=len(meant))
    value, contest, other = (max if target.measure == "us" else min)(figures, key=lambda figure: figure[0])
    text = str(contest.ratios[other.way]) if target.measure == "ratio" else target.shown(value)
    return Judgement(target, value, contest, other.way if target.against else "", text, len(figures), len(meant))


def _own(target: Target, row: Row, ceilings: Mapping[str, float]) -> float | None:
    if target.measure == "us":
        return row.median_us
    if target.measure == "items":
        return row.items / (1e-6 * row.median_us) or None
    return ceiling_share(row, ceilings)


def _against(target: Target, contest: Contest, ours: Row, other: Row) -> float:
    if target.measure == "memory":
        return other.peak_bytes / max(1, ours.peak_bytes)
    return contest.ratios[other.way].value

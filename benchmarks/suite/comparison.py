"""Comparisons: several ways of doing one thing, checked against the truth, then timed side by side.

A benchmark file lists comparisons; `measure` turns one into rows. A way is built (inputs made, code compiled, one call
made) and its result checked before its first timed call; what fails the check is a `wrong` row without a figure.
"""

import gc
import importlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .schema import Check, Level, Role, Row, Status
from .timing import Timing, time_ways

OURS = "ours"


@dataclass(frozen=True)
class Work:
    """Counted work of a call; 0: not counted.

    Attributes:
        bytes: read and written at the least.
        flops: floating-point operations.
        items: how many units it processes.
        unit: unit of the items: "tokens", "images".
    """

    bytes: float = 0.0
    flops: float = 0.0
    items: float = 0.0
    unit: str = ""


@dataclass(frozen=True)
class Ready:
    """A way that was built and checked.

    Attributes:
        calls: direction -> do it once; each was called once already.
        checked: how its result compares with the truth.
    """

    calls: Mapping[str, Callable[[], object]]
    checked: Check


@dataclass(frozen=True)
class Way:
    """One way of doing it.

    Attributes:
        name: name as shown; `OURS` for ours.
        build: function that makes it ready. `NotImplementedError` and running out of memory mean that a peer cannot do
            this case; any other error, and any of ours, that it is wrong.
        role: ours, the plain reference, or a peer.
        absent: why it cannot run on this machine; empty where it can.
    """

    name: str
    build: Callable[[], Ready]
    role: Role = "peer"
    absent: str = ""


@dataclass(frozen=True)
class Comparison:
    """Several ways of doing one thing.

    Attributes:
        level: part of the suite.
        subject: op, module or recipe.
        case: shape class and size, as shown.
        dtype: dtype of inputs or activations.
        directions: what each way can be asked for; a way may lack some.
        ways: ours among them.
        work: direction -> what a call must do.
        seconds: time to spend on each way, all directions together; where they are apart, on all ways.
        repeats: rounds at the most.
        apart: the ways do not fit beside one another: each is built, timed and dropped before the next, ours first and
            once more at the end: its two figures show what the machine did meanwhile.
        axis: axis of a scaling curve; empty: no part of one.
        at: place on that axis.
    """

    level: Level
    subject: str
    case: str
    dtype: str
    directions: Sequence[str]
    ways: Sequence[Way]
    work: Mapping[str, Work] = field(default_factory=dict)
    seconds: float = 1.5
    repeats: int = 30
    apart: bool = False
    axis: str = ""
    at: float = 0.0

    @property
    def name(self) -> str:
        """Subject and case, to select and to log by."""
        return f"{self.subject}, {self.case}"


def measure(comparison: Comparison, device: torch.device) -> list[Row]:
    """Build, check and time every way of a comparison.

    Args:
        comparison: what is compared.
        device: where the ways run; the timer waits for it.

    Returns:
        A row per way and direction; a way that cannot run or is wrong has one in every direction.
    """
    rows: list[Row] = []
    present = [way for way in comparison.ways if not way.absent]
    for way in comparison.ways:
        if way.absent:
            rows += _without_figure(comparison, way, "absent", way.absent)
    groups = [present]
    if comparison.apart:
        groups = [[way] for way in present]
        groups += [[_again(way)] for way in present if way.role == OURS]
    seconds = comparison.seconds / len(groups)
    for ways in groups:
        rows += _measure_together(comparison, ways, device, seconds)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def _measure_together(
    comparison: Comparison, ways: Sequence[Way], device: torch.device, seconds: float
) -> list[Row]:
    """Build, check and time ways side by side; nothing of them is left afterwards."""
    rows: list[Row] = []
    ready: dict[str, Ready] = {}
    for way in ways:
        try:
            made = way.build()
        except (NotImplementedError, torch.OutOfMemoryError) as error:
            status = "wrong" if way.name == OURS else "absent"  # a peer may be unable; what we publish may not
            rows += _without_figure(comparison, way, status, f"cannot: {_first_line(error)}")
            continue
        except Exception as error:
            traceback.print_exc()
            rows += _without_figure(comparison, way, "wrong", f"{type(error).__name__}: {_first_line(error)}")
            continue
        lacking = [direction for direction in comparison.directions if direction not in made.calls]
        if made.checked.passed and way.name == OURS and lacking:
            rows += _without_figure(comparison, way, "wrong", f"it has no {', '.join(lacking)}")
            continue
        if made.checked.passed:
            ready[way.name] = made
            continue
        off = f"off by {made.checked.error:.3g} from {made.checked.against}, allowed {made.checked.bound:.3g}"
        rows += _without_figure(comparison, way, "wrong", off)
    for direction in comparison.directions:
        calls = {name: made.calls[direction] for name, made in ready.items() if direction in made.calls}
        budget_s = seconds / len(comparison.directions) * len(calls)
        few_operations = comparison.level == "kernels"
        times = time_ways(
            calls, device, repeats=comparison.repeats, budget_s=budget_s, counts_cpu_memory=few_operations
        )
        for way in ways:
            if way.name in times:
                rows.append(_timed(comparison, way, direction, ready[way.name].checked, times[way.name]))
    return rows


def weakest(*checks: Check) -> Check:
    """Return the check that is nearest to its bound, or furthest beyond it."""
    return max(checks, key=lambda check: check.error / check.bound if check.error == check.error else float("inf"))


def walk(package: str, names: Sequence[str], device: torch.device, short: bool) -> list[Comparison]:
    """Return the comparisons of several modules: each has `comparisons(device, *, short)`."""
    modules = [importlib.import_module(f"{package}.{name}") for name in names]
    return [comparison for module in modules for comparison in module.comparisons(device, short=short)]


def _again(way: Way) -> Way:
    return Way(f"{way.name}, again", way.build, way.role)


def _place(comparison: Comparison, way: Way, direction: str) -> dict[str, Any]:
    names = ("level", "subject", "case", "dtype", "axis", "at")
    return {name: getattr(comparison, name) for name in names} | {
        "direction": direction,
        "way": way.name,
        "role": way.role,
    }


def _without_figure(comparison: Comparison, way: Way, status: Status, reason: str) -> list[Row]:
    return [
        Row(**_place(comparison, way, direction), status=status, reason=reason)
        for direction in comparison.directions
    ]


def _timed(comparison: Comparison, way: Way, direction: str, checked: Check, timing: Timing) -> Row:
    work = comparison.work.get(direction, Work())
    return Row(
        **_place(comparison, way, direction),
        **vars(work),
        **vars(timing),
        status="timed",
        checked=checked,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]

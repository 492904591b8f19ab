"""The rollout browser's index: alarms, links to the pages, curves and the last step's rewards, from metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmo_core.durable import write_text

from ..training.monitoring.log import read_metrics
from ..training.monitoring.summary import COLOURS

WIDTH, HEIGHT = 400, 150  # of a chart, in its own units
MAX_POINTS = 400  # of a curve; more steps are thinned out
MAX_ALARMS = 20

CHARTS: dict[str, tuple[str, ...]] = {
    "reward": ("reward", "reward_std"),
    "tokens of a completion": ("completion_tokens",),
    "entropy of a token (nat)": ("entropy",),
    "share of groups with equal rewards": ("zero_variance_ratio",),
    "boxes of a grounding answer": ("boxes", "true_boxes"),
    "share cut off, share unreadable": ("truncated_ratio", "unreadable_ratio"),
}
"""Title -> figures, beside the chart of the single rewards."""


def write_index(folder: Path, template: Any) -> None:
    """Write index.html for the pages in a folder.

    Args:
        folder: folder of the pages; its parent holds metrics.jsonl.
        template: jinja2 template of the index, which escapes what is put into it.
    """
    metrics = folder.parent / "metrics.jsonl"
    lines, events = read_metrics(metrics) if metrics.is_file() else ([], [])
    charts = {**CHARTS, "single rewards": tuple(f"reward/{name}" for name in reward_names(lines))}
    pages = sorted(folder.glob("step-*.html"))
    html = template.render(
        alarms=[event["message"] for event in reversed(events) if event["event"] == "alarm"][:MAX_ALARMS],
        pages=[{"href": path.name, "step": int(path.stem.removeprefix("step-"))} for path in pages],
        charts=[drawn for title, names in charts.items() if (drawn := chart(title, names, lines)) is not None],
        rewards=reward_rows(lines, events),
        width=WIDTH,
        height=HEIGHT,
    )
    write_text(folder / "index.html", html)


def reward_names(lines: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the short names of the rewards in the lines: of keys "reward/NAME"."""
    keys = {key for line in lines for key in line if key.startswith("reward/") and key.count("/") == 1}
    return sorted(key.removeprefix("reward/") for key in keys)


def chart(title: str, names: Sequence[str], lines: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """Return the curves of some figures in one frame; None where there are none."""
    curves = {name: [(line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]
              for name in names}  # fmt: skip
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    steps = [step for points in curves.values() for step, _ in points]
    values = [value for points in curves.values() for _, value in points]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    drawn = []
    for index, (name, points) in enumerate(curves.items()):
        every = math.ceil(len(points) / MAX_POINTS)
        shown = [*points[:-1:every], points[-1]]
        places = (
            (WIDTH * (step - first) / max(1, last - first), 16 + (HEIGHT - 32) * (1 - _share(value, low, high)))
            for step, value in shown
        )
        drawn.append(
            {
                "name": name.removeprefix("reward/"),
                "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in places),
                "colour": COLOURS[index % len(COLOURS)],
                "value": points[-1][1],
            }
        )
    return {"title": title, "lines": drawn, "first": int(first), "last": int(last), "low": low, "high": high}


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def reward_rows(lines: Sequence[Mapping[str, float]], events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the figures of each reward in the last line, and the bars of its last histogram in px."""
    counts = {event["reward"]: event["counts"] for event in events if event["event"] == "reward_histogram"}
    rows = []
    for name in reward_names(lines):
        last = next(line for line in reversed(lines) if f"reward/{name}" in line)

        def shown(figure: str, form: str = ".3f", name: str = name, line: Mapping[str, float] = last) -> str:
            value = line.get(f"reward/{name}{figure}")
            return "" if value is None else format(value, form)

        bars = counts.get(name, [])
        rows.append(
            {
                "name": name,
                "mean": shown(""),
                "std": shown("/std"),
                "min": shown("/min"),
                "max": shown("/max"),
                "applies": shown("/applies_ratio", ".0%"),
                "bars": [round(24 * bar / max(bars), 1) for bar in bars],
            }
        )
    return rows

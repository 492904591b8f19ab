"""Plots of a result: ratio to the best peer and share of the ceiling, per level; and how cost grows along an axis.

White ground and dark ink, so that they read in a light and in a dark page.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from medmo_core.durable import replacing

from ..suite.comparison import OURS
from .ratios import AGAIN, Contest, ceiling_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"faster": "#2a7f9e", "level": "#8a8f98", "slower": "#d1242f"}
INK, PALE = "#1f2328", "#d0d7de"
OTHERS = ("#bc6c25", "#6f4e9c", "#3d8b40", "#c2410c", "#0f766e", "#9d174d", "#64748b")
TICKS = tuple(step * 10**power for power in range(-4, 7) for step in (1, 2, 5))
DPI = 90

Curve = tuple[str, str, str, str]
"""Level, subject, axis and direction of a scaling curve."""


def planned(device: str, contests: Sequence[Contest], folder: Path) -> list[tuple[Path, str]]:
    """Return the plots that belong to a result, with a title each, drawn or not."""
    found = [
        (folder / f"{device}-{level}.png", f"{level.title()}: ratio to the best peer, and share of the ceiling")
        for level in _levels(contests)
    ]
    if curves(contests):
        found.append((folder / f"{device}-scaling.png", "How cost grows"))
    return found


def plot_all(device: str, contests: Sequence[Contest], ceilings: Mapping[str, float], folder: Path) -> None:
    """Draw what `planned` names.

    Raises:
        ModuleNotFoundError: matplotlib is missing; it comes with the extra `demo`.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    for level in _levels(contests):
        shown = [contest for contest in contests if contest.place[0] == level and contest.headline]
        _plot_level(shown, ceilings, folder / f"{device}-{level}.png")
    if curves(contests):
        _plot_curves(curves(contests), folder / f"{device}-scaling.png")


def curves(contests: Sequence[Contest]) -> dict[Curve, list[Contest]]:
    """Return what has an axis, by curve, each in the order of the axis; a single place is no curve."""
    found: dict[Curve, list[Contest]] = {}
    for contest in contests:
        axis = contest.rows[0].axis
        if axis:
            level, subject, _, _, direction = contest.place
            found.setdefault((level, subject, axis, direction), []).append(contest)
    ordered = {name: sorted(places, key=lambda contest: contest.rows[0].at) for name, places in found.items()}
    return {name: places for name, places in ordered.items() if len(places) > 1}


def _levels(contests: Sequence[Contest]) -> list[str]:
    return list(dict.fromkeys(contest.place[0] for contest in contests if contest.headline))


def _plot_level(contests: Sequence[Contest], ceilings: Mapping[str, float], path: Path) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    size = (14, 1.3 + 0.27 * len(contests))
    counted = any(row.bytes or row.flops for contest in contests for row in contest.rows)
    if counted:
        figure, panels = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=(3, 1.3), layout="constrained")
        left, right = panels
    else:
        figure, left = plt.subplots(figsize=size, layout="constrained")
        panels, right = [left], None
    for at, contest in enumerate(contests):
        assert contest.headline
        best, found = contest.headline
        colour = COLOURS[found.standing]
        left.barh(at, found.value - 1, left=1, color=colour, height=0.66)
        left.plot([found.low, found.high], [at, at], color=INK, linewidth=1)
        left.annotate(f"{found.value:.2f}x {best.way}", (max(found.high, 1.0), at), (4, 0), va="center", fontsize=8,
                      textcoords="offset points", color=colour if found.standing == "slower" else INK)  # fmt: skip
        for row, shape, shade in ((best, "o", COLOURS["level"]), (contest.ours, "D", COLOURS["faster"])):
            share = ceiling_share(row, ceilings) if row else None
            if right and share is not None:
                right.plot(100 * share, at, shape, color=shade, markersize=5)
    left.set_xscale("log")
    left.axvline(1, color=INK, linewidth=1)
    low, high = left.get_xlim()
    low, high = min(low, 0.8), max(high, 2.0)
    left.set_xlim(low, high * (high / low) ** 0.35)  # room for the peers' names
    left.xaxis.set_major_locator(FixedLocator(TICKS))
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    left.xaxis.set_minor_locator(NullLocator())
    left.set_yticks(range(len(contests)), [contest.name for contest in contests], fontsize=8)
    left.set_ylim(len(contests) - 0.4, -0.6)
    left.set_xlabel("best peer's median over ours (right of 1: ours is faster; red: slower)", fontsize=9)
    if right:
        right.axvline(100, color=INK, linewidth=1, linestyle=":")
        right.set_xlim(left=0)
        right.set_xlabel("% of the measured ceiling\n(diamond: ours, dot: best peer)", fontsize=9)
    _finish(figure, panels, path)


def _plot_curves(found: Mapping[Curve, Sequence[Contest]], path: Path) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 3.8 * rows), squeeze=False, layout="constrained")
    for panel in axes.flat[len(found) :]:
        panel.set_visible(False)
    for panel, ((_, subject, axis, direction), contests) in zip(axes.flat, found.items(), strict=False):
        ways = dict.fromkeys(row.way for contest in contests for row in contest.rows if not row.way.endswith(AGAIN))
        others = iter(OTHERS * len(ways))
        for way in ways:
            rows_of = [row for contest in contests for row in contest.rows if row.way == way and row.status == "timed"]
            if rows_of:
                style = {"color": COLOURS["faster"], "linewidth": 2.4} if way == OURS else {"color": next(others)}
                panel.plot([row.at for row in rows_of], [1e-3 * row.median_us for row in rows_of], "o-",
                           markersize=4, label=way, **style)  # fmt: skip
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_locator(FixedLocator(TICKS))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_title(f"{subject}, {direction}", fontsize=10)
        panel.set_xlabel(axis, fontsize=9)
        panel.set_ylabel("median, ms", fontsize=9)
        panel.legend(fontsize=7, frameon=False)
    _finish(figure, list(axes.flat), path)


def _finish(figure: Any, panels: "Sequence[Axes]", path: Path) -> None:
    from matplotlib import pyplot as plt

    for panel in panels:
        panel.grid(axis="both", color=PALE, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, colors=INK)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, facecolor="white")
    plt.close(figure)
    with replacing(path) as partial:  # 64 colours: a fifth of the size
        Image.open(drawn).convert("RGB").quantize(64).save(partial, format="PNG", optimize=True)

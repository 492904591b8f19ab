"""Summary of a run on one page: summary.md and summary.png, made from the files in its folder."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmo_core.durable import replacing, write_text
from medmo_core.notice import SHORT_NOTICE
from medmo_core.optional import missing
from medmo_core.printable import markdown

from .log import RunLog, count, duration, read_metrics
from .meter import Meter
from .smoothing import running_median

SHOWN_SKIPPED = 20
NO_PLOT = missing("matplotlib", "demo", "summary.png")
INK, QUIET, ACCENT, SECOND = "#1b1b1b", "#8a949e", "#1f5fa8", "#c8591b"
COLOURS = (ACCENT, SECOND, "#3a8f5c", "#7a4fa3", "#9c7a1d", "#4a5a68")
LOG_FROM = 30  # a norm that spans so many times its least value is drawn on a logarithmic axis


def summarise(log: RunLog, meter: Meter) -> None:
    """Record what a run did so far and write its page; only the main process does."""
    log.event("totals", **meter.totals())
    if log.writes:
        log.say(f"summary: {write_summary(log.out_dir)}")


def write_summary(folder: Path) -> Path:
    """Write summary.md and, where matplotlib is installed, summary.png into a run's folder.

    Args:
        folder: folder with config.json and metrics.jsonl.

    Returns:
        The path of summary.md.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    lines, events = read_metrics(folder / "metrics.jsonl")
    try:
        plot_curves(lines, f"{config['name']} ({config['stage']})", folder / "summary.png")
        plot = "![curves](summary.png)"
    except ImportError:
        plot = NO_PLOT
    text = describe(config, lines, events, read_skipped(folder), plot, folder)
    path = folder / "summary.md"
    write_text(path, text)
    return path


def read_skipped(folder: Path) -> list[dict[str, Any]]:
    """Return the samples that any process left out."""
    paths = sorted(folder.glob("skipped*.jsonl"))
    return [json.loads(text) for path in paths for text in path.read_text(encoding="utf-8").splitlines()]


def describe(
    config: Mapping[str, Any],
    lines: Sequence[Mapping[str, float]],
    events: Sequence[Mapping[str, Any]],
    skipped: Sequence[Mapping[str, Any]],
    plot: str,
    folder: Path,
) -> str:
    """Return the page as markdown; `folder` is the run's, of which it names what is there."""
    last = lines[-1] if lines else {}
    rows = [("steps", f"{int(last.get('step', 0)):,} of {config['train']['steps']:,}"), *_totals(events)]
    rows += [(name, f"{last[name]:.4g}") for name in ("loss", "reward", "val_loss", "val_accuracy") if name in last]
    rows += [(name, f"{value:.4g}") for name, value in last.items() if "loss/" in name]
    measured = [line for line in lines if "val_loss" in line]
    if measured:
        best = min(measured, key=lambda line: line["val_loss"])
        where = f"checkpoints/step-{int(best['step']):06d}"
        kept = f"kept in `{where}`" if (folder / where).is_dir() else "whose checkpoint is not there"
        rows.append(("best held-out loss", f"{best['val_loss']:.4g} after step {int(best['step'])}, {kept}"))
    peaks = [line["memory_gib"] for line in lines if "memory_gib" in line]
    if peaks:
        rows.append(("peak memory", f"{max(peaks):.2f} GiB in the process with the most"))
    page = [f"# {markdown(config['name'])} ({config['stage']})", "", plot, "", "| | |", "|---|---|"]
    page += [f"| {markdown(name)} | {value} |" for name, value in rows]
    page += ["", *_interruptions(events), *_skipped(skipped)]
    return "\n".join([*page, "", "The whole configuration is in `config.json`.", "", SHORT_NOTICE, ""])


def _totals(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    totals = next((event for event in reversed(events) if event["event"] == "totals"), {})
    rows = [(name, count(totals[name])) for name in ("tokens", "samples") if name in totals]
    if "hours" in totals:
        rows.append(("time in steps", duration(3600 * totals["hours"])))
    if "tokens_per_s" in totals:
        rows.append(("tokens/s", count(totals["tokens_per_s"])))
    if "mfu" in totals:
        rows.append(("MFU (useful operations of the bf16 peak)", f"{totals['mfu']:.1%}"))
    return rows


def _interruptions(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say where the run was stopped, resumed or refused a step."""
    words = {"stopped": "asked to stop after step", "resumed": "resumed after step",
             "not_finite": "refused (not finite): step", "spike": "refused (spike): step"}  # fmt: skip
    found = [event for event in events if event["event"] in words]
    if not found:
        return []
    return ["## Interruptions", "", *(f"- {words[e['event']]} {e['step']}{_named(e)}" for e in found), ""]


def _named(event: Mapping[str, Any]) -> str:
    return f", with samples {', '.join(map(markdown, event['samples']))}" if event.get("samples") else ""


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> list[str]:
    if not skipped:
        return ["No sample was left out."]
    kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(s["kind"] for s in skipped).most_common())
    page = [f"## Samples left out: {kinds}", "", "| sample | kind | reason |", "|---|---|---|"]
    for sample in skipped[:SHOWN_SKIPPED]:
        cells = (markdown(str(sample[key])) for key in ("id", "kind", "reason"))
        page.append(f"| {' | '.join(cells)} |")
    if len(skipped) > SHOWN_SKIPPED:
        page.append(f"\n{len(skipped) - SHOWN_SKIPPED} more in `skipped*.jsonl`.")
    return page


def plot_curves(lines: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Draw the curves of a run: what is minimised, the gradient norm, the rate, the speed.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(10.5, 6.4), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold", x=0.01, ha="left")
    ((loss, norm), (rate, speed)) = figure.subplots(2, 2)
    _curve(loss, lines, "reward" if any("reward" in line for line in lines) else "loss", "loss")
    rewards = sorted({n for line in lines for n in line if n.startswith("reward/") and n.count("/") == 1})
    for index, name in enumerate(rewards):
        points = [(line["step"], line[name]) for line in lines if name in line]
        colour = COLOURS[(index + 1) % len(COLOURS)]
        loss.plot(*zip(*points, strict=True), linewidth=1.0, color=colour, label=name.removeprefix("reward/"))
    if rewards:
        loss.legend(frameon=False, fontsize=8)
    held_out = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]
    if held_out:
        steps, values = zip(*held_out, strict=True)
        loss.plot(steps, values, color=SECOND, marker="o", markersize=4, linewidth=1.5, label="held-out")
        best = min(held_out, key=lambda point: point[1])
        loss.plot(*best, marker="o", markersize=9, markerfacecolor="none", markeredgecolor=SECOND, linestyle="none",
                  label=f"best: {best[1]:.4g} after step {int(best[0])}")  # fmt: skip
        loss.legend(frameon=False, fontsize=8)
    _curve(norm, lines, "grad_norm", "gradient norm")
    norms = [line["grad_norm"] for line in lines if line.get("grad_norm", 0) > 0]
    if norms and max(norms) > LOG_FROM * min(norms):
        norm.set_yscale("log")
    _curve(speed, lines, "tokens_per_s", "tokens per second")
    speed.set_ylim(bottom=0)
    speed.yaxis.set_major_formatter(lambda value, _: count(value))
    for index, name in enumerate(sorted({n for line in lines for n in line if n == "lr" or n.startswith("lr/")})):
        points = [(line["step"], line[name]) for line in lines if name in line]
        rate.plot(*zip(*points, strict=True), linewidth=1.6, color=COLOURS[index % len(COLOURS)], label=name)
    rate.set_title("learning rate", loc="left", fontsize=10, color=INK)
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    if len(rate.lines) > 1:
        rate.legend(frameon=False, fontsize=8)
    for axes in (loss, norm, rate, speed):
        axes.set_xlabel("step", fontsize=8, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e3e7eb", linewidth=0.7)
        axes.tick_params(which="both", labelsize=8, colors=INK)
        axes.spines[["left", "bottom"]].set_color(QUIET)
    figure.text(0.995, 0.985, SHORT_NOTICE, ha="right", va="top", fontsize=8, color=QUIET)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130, format="png")


def _curve(axes: Any, lines: Sequence[Mapping[str, float]], name: str, title: str) -> None:
    """Draw one number over the steps: every value thin, and a running median where there are many."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    axes.set_title(title if name != "reward" else name, loc="left", fontsize=10, color=INK)
    if not points:
        return
    steps, values = zip(*points, strict=True)
    middles = running_median(values)
    if middles is None:
        axes.plot(steps, values, color=ACCENT, linewidth=1.6, label="training")
        return
    axes.plot(steps, values, color=ACCENT, linewidth=0.6, alpha=0.35)
    axes.plot(steps, middles, color=ACCENT, linewidth=1.8, label="training (running median)")

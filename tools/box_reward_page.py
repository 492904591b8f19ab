"""Write the tables of docs/box_reward.md and its plot: what each box reward pays for the same boxes.

    python -m tools.box_reward_page --write     # after a change of a reward
    python -m tools.box_reward_page --check     # exit status 1 where the page says something else

Scores come from `medmo_kernels.box_reward` on corners as they are, so that a box may reach beyond the image, which a
completion's box cannot: it is clipped. Inside the image they are those of the rewards. Formulas of other projects are
written down here in a few lines each, from their descriptions, for comparison only.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from benchmarks.report.page_section import settle
from medmo_core.rewards.box import FIRST_THRESHOLD, LAST_THRESHOLD
from medmo_kernels import box_reward

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, PLOT = DOCS / "box_reward.md", DOCS / "box_reward.png"
IMAGE = 1024.0
SIZES = (200.0, 50.0, 10.0)
"""Sides of the true box, px."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Case:
    """Boxes that are said and boxes that are true; labels are numbers."""

    pred: tuple[Box, ...]
    truth: tuple[Box, ...]
    pred_labels: tuple[int, ...]
    truth_labels: tuple[int, ...]


def case(pred: Sequence[Box], truth: Sequence[Box], other_label: int = 0) -> Case:
    """Return a case of one label, or with another one on what is said."""
    return Case(tuple(pred), tuple(truth), (other_label,) * len(pred), (0,) * len(truth))


def square(x: float, y: float, side: float) -> Box:
    """Return a square by its upper left corner."""
    return x, y, x + side, y + side


def shifted(side: float, widths: float) -> Case:
    """Return one true square and the same one so many widths to the right."""
    return case([square(widths * side, 0, side)], [square(0, 0, side)])


GEOMETRY: dict[str, Callable[[float], Case]] = {
    "exact": partial(shifted, widths=0),
    "IoU 0.5": partial(shifted, widths=1 / 3),
    "IoU 0.45": partial(shifted, widths=0.55 / 1.45),
    "IoU 0.35": partial(shifted, widths=0.65 / 1.35),
    "edges touch": partial(shifted, widths=1),
    "2 widths off": partial(shifted, widths=2),
    "5 widths off": partial(shifted, widths=5),
    "whole image": lambda side: case([(0, 0, IMAGE, IMAGE)], [square(0, 0, side)]),
}

_HIT, _SECOND, _AWAY = square(100, 100, 50), square(700, 100, 50), square(400, 800, 50)
COUNTS: dict[str, Case] = {
    "copy of the hit": case([_HIT, _HIT], [_HIT]),
    "one spurious": case([_HIT, _AWAY], [_HIT]),
    "ten spurious": case([_HIT, *(square(80 * k, 800, 50) for k in range(10))], [_HIT]),
    "one of two": case([_HIT], [_HIT, _SECOND]),
    "nothing, right": case([], []),
    "box on nothing": case([_HIT], []),
    "nothing, wrong": case([], [_HIT]),
    "other label": case([_HIT], [_HIT], other_label=1),
}


def ours(formula: str, found: Case, *, labels: bool = True, empty_score: float | None = None, **options: Any) -> float:
    """Score a case by `medmo_kernels.box_reward`.

    Args:
        formula: `overlap`, `iou`, `f1` or `medmo`.
        found: the case.
        labels: whether they are compared.
        empty_score: score of no box where there is none; None: the formula's own.
        options: options of the kernel.
    """
    if empty_score is not None and not found.pred and not found.truth:
        return empty_score
    pred, truth = (torch.tensor(side, dtype=torch.float64).reshape(-1, 4) for side in (found.pred, found.truth))
    classes: dict[str, torch.Tensor] = {}
    if labels:
        classes = {"pred_labels": torch.tensor(found.pred_labels, dtype=torch.int64),
                   "truth_labels": torch.tensor(found.truth_labels, dtype=torch.int64)}  # fmt: skip
    return box_reward(
        pred, truth, torch.tensor([0, len(pred)]), torch.tensor([0, len(truth)]),
        image_size=torch.tensor([[IMAGE, IMAGE]], dtype=torch.float64), formula=formula, **classes, **options,
    ).score.item()  # fmt: skip


def graded(threshold: float, found: Case) -> float:
    """Score a case by the project's default at one threshold of its curriculum."""
    return (ours("overlap", found) + ours("f1", found, iou_threshold=threshold)) / 2


medmo = partial(ours, "medmo", labels=False)


def _ious(found: Case) -> NDArray[np.float64]:
    pred, truth = (np.array(side, dtype=np.float64).reshape(-1, 4) for side in (found.pred, found.truth))
    sides = np.minimum(pred[:, None, 2:], truth[None, :, 2:]) - np.maximum(pred[:, None, :2], truth[None, :, :2])
    inter = sides.clip(0).prod(-1)
    areas = [(side[:, 2:] - side[:, :2]).prod(-1) for side in (pred, truth)]
    return inter / (areas[0][:, None] + areas[1][None] - inter)


def three_tests(found: Case) -> float:
    """Score as VisionReasoner: IoU > 0.5, mean corner distance < 10 px, point (here the centre) within 30 px."""
    if not found.pred or not found.truth:
        return 0.0
    pred, truth = np.array(found.pred), np.array(found.truth)
    corners = np.abs(pred[:, None] - truth[None]).mean(-1)
    centres = [(side[:, :2] + side[:, 2:]) / 2 for side in (pred, truth)]
    points = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=-1)
    passed = ((_ious(found) > 0.5) * 1.0 + (corners < 10) + (points < 30)) / 3
    return float(passed[linear_sum_assignment(passed, maximize=True)].sum() / max(len(pred), len(truth)))


def best_iou_f1(found: Case) -> float:
    """Score as Rex-Omni: F1 of the best IoU of each said box (precision) and of each true one (recall)."""
    if not found.pred or not found.truth:
        return 0.0
    iou = _ious(found)
    precision, recall = iou.max(1).mean(), iou.max(0).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def mean_iou(found: Case) -> float:
    """Score the mean IoU of all pairs of a said and a true box, without matching."""
    return float(_ious(found).mean()) if found.pred and found.truth else 0.0


VARIANTS: dict[str, Callable[[Case], float]] = {
    f"**box**, at the start (threshold {FIRST_THRESHOLD})": partial(graded, FIRST_THRESHOLD),
    "**box**, threshold 0.4": partial(graded, 0.4),
    f"**box**, at the end (threshold {LAST_THRESHOLD})": partial(graded, LAST_THRESHOLD),
    "`box`, formula overlap": partial(ours, "overlap"),
    "`box`, formula iou": partial(ours, "iou"),
    "`box`, formula f1": partial(ours, "f1"),
    "`medmo_box` (as published)": medmo,
    "`medmo_box`, prices 0.5": partial(medmo, lambda_fn=0.5, lambda_fp=0.5),
    "`medmo_box`, prices 0.5 not per truth": partial(medmo, lambda_fn=0.5, lambda_fp=0.5, penalty_per_truth=False),
    "`medmo_box`, squared": partial(medmo, squared=True),
    "`medmo_box`, labels, empty 1": partial(ours, "medmo", empty_score=1.0),
    "three tests (VisionReasoner)": three_tests,
    "best-IoU F1 (Rex-Omni)": best_iou_f1,
    "mean IoU of all pairs": mean_iou,
}
PLOTTED = {
    "box, at the start": 0, "box, at the end": 2, "overlap": 3, "iou": 4, "f1": 5,
    "medmo_box": 6, "medmo_box, prices 0.5": 7, "three tests (VisionReasoner)": 11, "best-IoU F1 (Rex-Omni)": 12,
    "mean IoU of all pairs": 13,
}  # fmt: skip
"""Title of a panel -> row of `VARIANTS`."""


def section() -> str:
    """Return the generated part of the page."""
    sizes = " / ".join(f"{side:.0f}" for side in SIZES)
    lines = [
        f"One true box of {sizes} px in an image of {IMAGE:.0f} px; one box said, moved to the right:",
        "",
        "| reward | " + " | ".join(GEOMETRY) + " |",
        "|---" * (1 + len(GEOMETRY)) + "|",
    ]
    for name, score in VARIANTS.items():
        cells = (" / ".join(f"{score(make(side)):.3f}" for side in SIZES) for make in GEOMETRY.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Boxes of 50 px; every said box that has a target hits it exactly:",
        "",
        "| reward | " + " | ".join(COUNTS) + " |",
        "|---" * (1 + len(COUNTS)) + "|",
    ]
    for name, score in VARIANTS.items():
        lines.append(f"| {name} | " + " | ".join(f"{score(found):.3f}" for found in COUNTS.values()) + " |")
    return "\n".join(lines)


def plot(path: Path) -> None:
    """Draw a pair of panels for each plotted variant: reward against distance, and against boxes too many."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scores = list(VARIANTS.values())
    columns = 5
    rows = -(-len(PLOTTED) // columns)
    figure, axes = plt.subplots(2 * rows, columns, figsize=(15, 5.2 * rows), sharey=True, layout="constrained")
    widths, spam = np.linspace(0, 5, 151), range(11)
    for number, (title, row) in enumerate(PLOTTED.items()):
        far, many = (axes[2 * (number // columns) + part, number % columns] for part in (0, 1))
        # Wide pale lines below narrow dark ones: where all sizes are paid the same, all three still show.
        for side, width, colour in zip(SIZES, (6.0, 3.5, 1.4), ("#a6cee3", "#fb9a50", "#222222"), strict=True):
            values = [scores[row](shifted(side, float(at))) for at in widths]
            far.plot(widths, values, color=colour, linewidth=width, label=f"{side:.0f} px", solid_capstyle="round")
        elsewhere = [scores[row](case([_HIT, *(square(80 * k, 800, 50) for k in range(n))], [_HIT])) for n in spam]
        copies = [scores[row](case([_HIT] * (1 + n), [_HIT])) for n in spam]
        many.plot(spam, elsewhere, color="#c0392b", linewidth=4, alpha=0.55, label="boxes elsewhere")
        many.plot(spam, copies, color="#1f4e79", linewidth=1.6, linestyle="--", label="copies of the hit")
        far.set_title(title, fontsize=11, fontweight="bold")
        far.set_xlabel("shift, in box widths", fontsize=9)
        many.set_xlabel("boxes too many", fontsize=9)
        for panel in (far, many):
            panel.set_ylim(-0.04, 1.04)
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize=8)
    for part in range(2 * rows):
        axes[part, 0].set_ylabel("reward")
    axes[0, 0].legend(title="side of the true box", fontsize=8, title_fontsize=8, frameon=False)
    axes[1, 0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare or write; returns 1 where the page says something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="put the tables into the page and draw the plot")
    action.add_argument("--check", action="store_true", help="compare the tables")
    arguments = parser.parse_args(argv)
    if arguments.write:
        plot(PLOT)
    fix = "python -m tools.box_reward_page --write"
    return settle(PAGE, "tools.box_reward_page", section(), write=arguments.write, fix=fix)


if __name__ == "__main__":
    raise SystemExit(main())

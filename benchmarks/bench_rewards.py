"""Time the whole box reward, from text to score, beside a NumPy and SciPy loop and COCOeval, on one core.

    python -m benchmarks.bench_rewards               # status 1 where a required ratio is missed

512 completions (64 prompts of 8 samples) name 16 boxes of four labels each, as Qwen3-VL's JSON: most near a true box,
some astray, some under a wrong label; true boxes of one prompt do not overlap. All ways start from the same texts and
true boxes, parse them, and must agree before they are timed, interleaved in one process:

- NumPy and SciPy: per completion one `json.loads`, all overlaps as matrices, `linear_sum_assignment` for each of the
  two parts of the default reward. Its scores equal ours to 1e-9.
- COCOeval: per completion one call of pycocotools with its own settings, to the average precision. Timed over fewer
  completions, scaled to all.
- lean COCOeval: the least it can do, one threshold, one area range, no precision; its hits give F1 at IoU 0.5, which
  equals our formula `f1` to 1e-9. Nothing is required against it.
"""

import argparse
import contextlib
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from medmo_core.boxes import Boxes
from medmo_core.profile import QWEN3_VL
from medmo_core.rewards import REWARDS
from medmo_kernels import runtime

from .timing import time_ways

PROMPTS, SAMPLES, BOXES = 64, 8, 16
SIZE = (1024, 768)
LABELS = ("liver", "spleen", "left kidney", "right kidney")
THRESHOLD = 0.5
COCO_SHARE = 32
"""Of so many completions COCOeval takes one while it is timed."""
REQUIRED = {"NumPy and SciPy": 2.5, "COCOeval": 20.0}
TOLERANCE = 1e-9
ROUNDING = 1e-12
"""Of a division: it must not decide a pair that lies exactly on the threshold."""


@dataclass(frozen=True)
class Work:
    """Completions and what is true of each, in the form that each way likes best."""

    completions: list[str]
    boxes: list[Boxes]
    corners: list[NDArray[np.float64]]
    labels: list[NDArray[Any]]


def make_work(prompts: int = PROMPTS, samples: int = SAMPLES, boxes: int = BOXES, seed: int = 0) -> Work:
    """Return completions as a half-trained model writes them."""
    rng = np.random.default_rng(seed)
    work = Work([], [], [], [])
    for _ in range(prompts):
        side = math.ceil(math.sqrt(boxes))
        cell = 1000 // side
        low = np.stack(np.divmod(np.arange(boxes), side), axis=1) * cell + rng.integers(0, cell // 4, (boxes, 2))
        truth = np.concatenate([low, low + rng.integers(cell // 4, cell // 2, (boxes, 2))], axis=1)
        names = rng.integers(0, len(LABELS), boxes)
        labels = tuple(LABELS[name] for name in names)
        true_boxes = Boxes(torch.from_numpy(truth).double(), "norm1000", SIZE, labels).pixel()
        for _ in range(samples):
            rows = truth + rng.integers(-(cell // 10), cell // 10, truth.shape)
            astray = rng.random(boxes) < 0.1
            rows[astray] = 1000 - rows[astray]
            rows = np.sort(rows.clip(0, 1000).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
            said = np.where(rng.random(boxes) < 0.1, rng.integers(0, len(LABELS), boxes), names)
            items = [{"bbox_2d": row.tolist(), "label": LABELS[name]} for row, name in zip(rows, said, strict=True)]
            work.completions.append(json.dumps(items))
            work.boxes.append(true_boxes)
            work.corners.append(true_boxes.xyxy.numpy())
            work.labels.append(np.array(labels))
    return work


def our_scores(work: Work, formula: str = "graded") -> list[float | None]:
    """Take our way."""
    count = len(work.completions)
    return REWARDS["box"](
        work.completions, task=["grounding"] * count, boxes=work.boxes, image_size=[SIZE] * count, profile=QWEN3_VL,
        formula=formula,
    )  # fmt: skip


def read_boxes(text: str) -> tuple[NDArray[np.float64], list[str]]:
    """Return the corners in pixels and the labels of one completion; reversed boxes are left out."""
    try:
        items = json.loads(text)
    except ValueError:
        return np.zeros((0, 4)), []
    rows = np.array([item["bbox_2d"] for item in items], dtype=np.float64).reshape(-1, 4)
    labels = [item["label"].strip().lower() for item in items]
    rows = rows.clip(0, 1000) * np.array(SIZE * 2) / 1000
    good = (rows[:, 0] <= rows[:, 2]) & (rows[:, 1] <= rows[:, 3])
    if not good.all():
        rows, labels = rows[good], [label for label, kept in zip(labels, good, strict=True) if kept]
    return rows, labels


def numpy_scores(work: Work) -> list[float]:
    """Take the way of NumPy and SciPy, completion by completion."""
    scores = []
    for text, truth, true_labels in zip(work.completions, work.corners, work.labels, strict=True):
        pred, labels = read_boxes(text)
        if len(pred) == 0 or len(truth) == 0:
            scores.append(float(len(pred) == len(truth)))
            continue
        sides = np.minimum(pred[:, None, 2:], truth[None, :, 2:]) - np.maximum(pred[:, None, :2], truth[None, :, :2])
        sides = sides.clip(0)
        inter = sides[..., 0] * sides[..., 1]
        area = (pred[:, 2] - pred[:, 0]) * (pred[:, 3] - pred[:, 1])
        true_area = (truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1])
        union = area[:, None] + true_area - inter
        iou = inter / union
        sides = np.maximum(pred[:, None, 2:], truth[None, :, 2:]) - np.minimum(pred[:, None, :2], truth[None, :, :2])
        hull = sides[..., 0] * sides[..., 1]
        pay = (iou + (iou - (hull - union) / hull).clip(0)) / 2
        other = np.array(labels)[:, None] != true_labels
        pay[other] = 0
        iou[other] = 0
        overlap = pay[linear_sum_assignment(pay, maximize=True)].sum() / max(len(pred), len(truth))
        hits = (iou[linear_sum_assignment(iou, maximize=True)] >= THRESHOLD - ROUNDING).sum()
        scores.append((overlap + 2 * hits / (len(pred) + len(truth))) / 2)
    return scores


def coco_scores(work: Work, every: int = 1, *, lean: bool = False) -> list[float]:
    """Take the way of COCOeval for every so many completions: average precision, or F1 of what it matches (lean)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = {label: number for number, label in enumerate(LABELS, 1)}

    def entries(corners: NDArray[np.float64], labels: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {"id": number, "image_id": 1, "category_id": ids[label], "bbox": [x1, y1, x2 - x1, y2 - y1],
             "area": (x2 - x1) * (y2 - y1), "iscrowd": 0, "score": 1.0}
            for number, ((x1, y1, x2, y2), label) in enumerate(zip(corners.tolist(), labels, strict=True), 1)
        ]  # fmt: skip

    scores = []
    for index in range(0, len(work.completions), every):
        pred, labels = read_boxes(work.completions[index])
        truth = work.corners[index]
        with contextlib.redirect_stdout(io.StringIO()):
            known, said = COCO(), COCO()
            for side, corners, names in ((known, truth, work.labels[index].tolist()), (said, pred, labels)):
                side.dataset = {
                    "images": [{"id": 1, "width": SIZE[0], "height": SIZE[1]}],
                    "categories": [{"id": number, "name": name} for name, number in ids.items()],
                    "annotations": entries(corners, names),
                }
                side.createIndex()
            evaluation = COCOeval(known, said, "bbox")
            if lean:
                evaluation.params.iouThrs = np.array([THRESHOLD - ROUNDING])
                evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
                evaluation.params.maxDets = [100]
            evaluation.evaluate()
            if not lean:
                evaluation.accumulate()
                evaluation.summarize()
                scores.append(float(evaluation.stats[0]))
                continue
        hits = sum(int((found["dtMatches"] > 0).sum()) for found in evaluation.evalImgs if found)
        scores.append(2 * hits / (len(pred) + len(truth)) if len(pred) + len(truth) else 1.0)
    return scores


def check(name: str, found: Sequence[float], expected: Sequence[float | None]) -> None:
    """Check that two ways agree.

    Raises:
        ValueError: they do not.
    """
    # None becomes NaN, which nothing equals.
    worst = np.abs(np.array(found, dtype=np.float64) - np.array(expected, dtype=np.float64)).max()
    if not worst <= TOLERANCE:
        raise ValueError(f"{name}: scores differ by {worst:.3g} from ours, expected at most {TOLERANCE:g}")


def compare(work: Work, repeats: int) -> dict[str, float]:
    """Print milliseconds for all completions; return how many times faster we are than each peer."""
    torch.set_num_threads(1)
    count = len(work.completions)
    check("NumPy and SciPy", numpy_scores(work), our_scores(work))
    check("lean COCOeval", coco_scores(work, lean=True), our_scores(work, "f1"))
    every = min(COCO_SHARE, count)
    times = time_ways(
        {
            "ours": lambda: our_scores(work),
            "NumPy and SciPy": lambda: numpy_scores(work),
            "COCOeval": lambda: coco_scores(work, every),
            "lean COCOeval": lambda: coco_scores(work, every, lean=True),
        },
        torch.device("cpu"), repeats=repeats, budget_s=120,
    )  # fmt: skip
    scale = dict.fromkeys(("COCOeval", "lean COCOeval"), count / len(range(0, count, every)))
    print(f"{count} completions of {len(work.corners[0])} boxes, text to score, one core, native library "
          f"{runtime.native_status()}; medians of {times['ours'].repeats} interleaved runs")  # fmt: skip
    ratios = {}
    for name, time in times.items():
        low, middle, high = (1e-3 * us * scale.get(name, 1.0) for us in (time.p20_us, time.median_us, time.p80_us))
        line = f"{name:16} {middle:8.1f} ms [{low:.1f}, {high:.1f}]"
        if name != "ours":
            ratios[name] = time.median_us * scale.get(name, 1.0) / times["ours"].median_us
            line += f": ours is {ratios[name]:.1f} times faster"
            line += f" (required {REQUIRED[name]:g})" if name in REQUIRED else ""
        print(line)
    return ratios


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; return 1 where a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25, help="timed runs of each way (default: %(default)s)")
    arguments = parser.parse_args(argv)
    ratios = compare(make_work(), arguments.repeats)
    missed = [name for name, ratio in ratios.items() if ratio < REQUIRED.get(name, 0)]
    for name in missed:
        print(f"MISSED: {ratios[name]:.1f} times faster than {name}, required are {REQUIRED[name]:g}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

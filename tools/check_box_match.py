"""Hold box_match's optimum to SciPy's on many random problems; exit status 1 where one differs.

    python -m tools.check_box_match                      # 100,000 problems
    python -m tools.check_box_match --problems 2000

Problems of 0 to 64 boxes a side, with and without labels and boxes that are not numbers, under all four costs: the
number of pairs and their total cost must equal SciPy's. The costs are written down a second time, in NumPy.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from medmo_kernels import box_match
from medmo_kernels.box_match.reference import COSTS

CHUNK = 500
"""Problems of one call of the op."""
IMAGE = (1000.0, 800.0)


def plain_costs(pred: np.ndarray, truth: np.ndarray, cost: str) -> np.ndarray:
    """Return the costs of all pairs, written down a second time, in NumPy."""
    p, t = pred[:, None], truth[None]
    inter = np.prod(np.clip(np.minimum(p[..., 2:], t[..., 2:]) - np.maximum(p[..., :2], t[..., :2]), 0, None), axis=-1)
    hull = np.prod(np.maximum(p[..., 2:], t[..., 2:]) - np.minimum(p[..., :2], t[..., :2]), axis=-1)
    union = np.prod(p[..., 2:] - p[..., :2], axis=-1) + np.prod(t[..., 2:] - t[..., :2], axis=-1) - inter
    iou = inter / union
    giou = iou - (hull - union) / hull
    if cost == "overlap":
        return 1 - (iou + np.clip(giou, 0, None)) / 2
    if cost == "medmo":
        return 5 * np.abs(p - t).sum(-1) / (2 * math.hypot(*IMAGE)) + 2 * (1 - giou)
    return 1 - (iou if cost == "iou" else giou)


def differing(seed: int, problems: int = CHUNK) -> list[str]:
    """Match one chunk of random problems and return what differs from SciPy, in words."""
    rng = np.random.default_rng(seed)
    cost = COSTS[seed % len(COSTS)]
    labelled = bool(rng.random() < 0.5)
    # Half of the chunks are of few boxes, as images mostly are.
    most = int(rng.choice([8, 64]))
    counts = rng.integers(0, most + 1, (problems, 2))

    def boxes(count: int) -> np.ndarray:
        corners = rng.random((count, 2, 2)) * IMAGE
        return np.concatenate([corners.min(1), corners.max(1) + 1], axis=1)

    pred, truth = boxes(counts[:, 0].sum()), boxes(counts[:, 1].sum())
    near = min(len(pred), len(truth)) // 3
    pred[:near] = truth[:near] + rng.normal(0, 0.2, (near, 4))
    pred[rng.random(len(pred)) < 0.01] = np.nan
    labels = [rng.integers(0, 3, len(side)) for side in (pred, truth)]
    starts = [np.concatenate([[0], counts[:, side].cumsum()]) for side in (0, 1)]
    match = box_match(
        torch.from_numpy(pred), torch.from_numpy(truth), torch.from_numpy(starts[0]), torch.from_numpy(starts[1]),
        pred_labels=torch.from_numpy(labels[0]) if labelled else None,
        truth_labels=torch.from_numpy(labels[1]) if labelled else None,
        image_size=torch.tensor([IMAGE] * problems), cost=cost,
    ).numpy()  # fmt: skip
    wrong = []
    for b, (p, t) in enumerate(counts):
        p0, t0 = starts[0][b], starts[1][b]
        chosen = match[p0 : p0 + p]
        rows = np.flatnonzero(chosen >= 0)
        columns = chosen[rows] - t0
        costs = plain_costs(pred[p0 : p0 + p], truth[t0 : t0 + t], cost)
        if labelled:
            costs = np.where(labels[0][p0 : p0 + p, None] == labels[1][None, t0 : t0 + t], costs, np.inf)
        allowed = np.isfinite(costs)
        best_rows, best_columns = linear_sum_assignment(np.where(allowed, costs, 1e4))
        kept = allowed[best_rows, best_columns]
        best = costs[best_rows[kept], best_columns[kept]].sum()
        sound = len(np.unique(columns)) == len(columns) and bool(allowed[rows, columns].all())
        total = costs[rows, columns].sum() if sound else math.nan
        if not (sound and len(rows) == kept.sum() and abs(total - best) <= 1e-9 * (1 + abs(best))):
            wrong.append(f"seed {seed}, problem {b} ({p} x {t}, {cost}): {len(rows)} pairs at {total}, "
                         f"SciPy {kept.sum()} at {best}")  # fmt: skip
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; return 1 where an optimum differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=100_000, help="random problems; whole chunks of 500")
    arguments = parser.parse_args(argv)
    began = time.perf_counter()
    seeds = range(math.ceil(arguments.problems / CHUNK))
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 8), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        wrong = [line for lines in pool.map(differing, seeds) for line in lines]
    for line in wrong[:10]:
        print(line)
    print(f"{len(seeds) * CHUNK} random problems beside SciPy: {len(wrong)} differ "
          f"({time.perf_counter() - began:.0f} s)")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Match boxes on the CPU: the native library beside batched torch GIoU and a SciPy loop, the optimum beside SciPy's.

    python -m benchmarks.bench_box_match                      # speed, then 100,000 problems; status 1 on a difference
    python -m benchmarks.bench_box_match --problems 2000      # fewer of them

Speed: both ways start from the same fp32 boxes and run interleaved, so that a busy minute hits both; medians count.
Optimum: random problems of 0 to 64 boxes a side, with and without labels and boxes that are not numbers, under all four
costs; the number of pairs and their total cost must equal SciPy's.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from medmo_kernels import box_match, runtime
from medmo_kernels.box_match.reference import COSTS

SPEED_SIZES = (16, 64)
SPEED_PROBLEMS = 512
REQUIRED = {16: 4.0, 64: 2.5}
"""How many times faster than the peer, by boxes a side."""
CHUNK = 500
"""Problems of one call of the op, in the comparison with SciPy."""
IMAGE = (1000.0, 800.0)


# --- speed -----------------------------------------------------------------------------------------------------------


def square_problems(size: int, good: bool, count: int = SPEED_PROBLEMS) -> tuple[Tensor, Tensor, Tensor]:
    """Return predicted boxes, true boxes and the offsets of both: `good` predictions lie near the true boxes."""
    generator = torch.Generator().manual_seed(size)

    def ordered(boxes: Tensor) -> Tensor:
        return torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], dim=1)

    truth = ordered(torch.rand(count * size, 4, generator=generator) * 800)
    noise = torch.randn(truth.shape, generator=generator) * 8
    pred = ordered(truth + noise) if good else ordered(torch.rand(truth.shape, generator=generator) * 800)
    return pred, truth, torch.arange(count + 1) * size


def torch_and_scipy(pred: Tensor, truth: Tensor, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Match as DETR's descendants do: all GIoU in one batch, then SciPy problem by problem."""
    p, t = pred.view(-1, size, 1, 4), truth.view(-1, 1, size, 4)
    p_area, t_area = ((b[..., 2:] - b[..., :2]).prod(-1) for b in (p, t))
    inter = (torch.minimum(p[..., 2:], t[..., 2:]) - torch.maximum(p[..., :2], t[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(p[..., 2:], t[..., 2:]) - torch.minimum(p[..., :2], t[..., :2])).prod(-1)
    union = p_area + t_area - inter
    cost = 1 - (inter / union - (hull - union) / hull)
    return [linear_sum_assignment(matrix) for matrix in cost.numpy()]


def median_ms(ways: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median duration of each way, one run of each in turn."""
    durations: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, found in zip(ways, durations, strict=True):
            began = time.perf_counter()
            way()
            found.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(found) for found in durations]


def compare_speed(repeats: int) -> None:
    """Print medians and ratios."""
    print(f"boxes to assignment, {SPEED_PROBLEMS} problems, {torch.get_num_threads()} threads, "
          f"native library: {runtime.native_status()}")  # fmt: skip
    for size in SPEED_SIZES:
        for good in (True, False):
            pred, truth, offsets = square_problems(size, good)
            peer, ours = median_ms(
                (
                    lambda p=pred, t=truth, n=size: torch_and_scipy(p, t, n),
                    lambda p=pred, t=truth, o=offsets: box_match(p, t, o, o, cost="giou"),
                ),
                repeats,
            )
            what = f"{size} x {size}, {'good predictions' if good else 'random boxes'}"
            print(f"{what:32}: torch + SciPy {peer:7.2f} ms, box_match {ours:6.2f} ms, {peer / ours:5.2f}x "
                  f"(required {REQUIRED[size]:g}x)", flush=True)  # fmt: skip


# --- optimum ---------------------------------------------------------------------------------------------------------


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


def differing(seed: int) -> list[str]:
    """Match one chunk of random problems and return what differs from SciPy, in words."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    cost = COSTS[seed % len(COSTS)]
    labelled = bool(rng.random() < 0.5)
    # Half of the chunks are of few boxes, as images mostly are.
    most = int(rng.choice([8, 64]))
    counts = rng.integers(0, most + 1, (CHUNK, 2))

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
        image_size=torch.tensor([IMAGE] * CHUNK), cost=cost,
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


def compare_optimum(problems: int) -> bool:
    """Print how many of so many random problems differ from SciPy; return whether none does."""
    began = time.perf_counter()
    seeds = range(math.ceil(problems / CHUNK))
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        wrong = [line for lines in pool.map(differing, seeds) for line in lines]
    for line in wrong[:10]:
        print(line)
    print(f"{len(seeds) * CHUNK} random problems beside SciPy: {len(wrong)} differ "
          f"({time.perf_counter() - began:.0f} s)")  # fmt: skip
    return not wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Run both comparisons; return 1 where an optimum differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=100_000, help="random problems to compare; 0: speed only")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each way")
    arguments = parser.parse_args(argv)
    compare_speed(arguments.repeats)
    return 0 if not arguments.problems or compare_optimum(arguments.problems) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Cases of box_match and assign for the walker, the compiler gate and the benchmark.

Equally cheap assignments are all right, so results are compared by what they cost, and by the rules they keep.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..spec import Arguments, Bench, Compile, OpSpec, Tolerance
from .op import BACK_ENDS, SHAPE, _assign, _box_match, assign, box_match, choices
from .reference import assign_reference, box_match_reference, pair_costs


def ragged_boxes(counts: Sequence[tuple[int, int]], generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    """Return problems of the given numbers of predicted and true boxes, in an image of 1000 x 800."""

    def boxes(count: int) -> Tensor:
        corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * 800
        return torch.cat([corners.amin(1), corners.amax(1)], dim=1).to(dtype)

    def offsets(index: int) -> Tensor:
        return torch.tensor([0, *(pair[index] for pair in counts)]).cumsum(0)

    pred, truth = boxes(sum(p for p, _ in counts)), boxes(sum(t for _, t in counts))
    near = min(len(pred), len(truth)) // 2
    pred[:near] = truth[:near]
    return {
        "pred": pred,
        "truth": truth,
        "pred_offsets": offsets(0),
        "truth_offsets": offsets(1),
        "pred_labels": torch.randint(0, 2, (len(pred),), generator=generator),
        "truth_labels": torch.randint(0, 2, (len(truth),), generator=generator),
        "image_size": torch.tensor([[1000.0, 800.0]] * len(counts), dtype=torch.float64).reshape(-1, 2),
    }


def _match_case(
    size: tuple[Sequence[tuple[int, int]], str], generator: torch.Generator, dtype: torch.dtype
) -> Arguments:
    counts, cost = size
    arguments = ragged_boxes(counts, generator, dtype)
    if cost != "overlap":  # one cost is tried with labels, the others without
        arguments |= {"pred_labels": None, "truth_labels": None}
    return {**arguments, "cost": cost}


def _paid(arguments: Arguments, match: Tensor) -> list[Tensor]:
    """Return the total cost and the number of pairs of every problem."""
    totals, pairs = [], []
    bounds = arguments["pred_offsets"].tolist()
    starts = arguments["truth_offsets"].tolist()
    for b, (p0, p1) in enumerate(zip(bounds, bounds[1:], strict=False)):
        chosen = match[p0:p1]
        used = chosen[chosen >= 0]
        assert len(used.unique()) == len(used), "a true box is matched twice"
        assert bool(((used >= starts[b]) & (used < starts[b + 1])).all()), "a match leaves its problem"
        diagonal = math.hypot(*arguments["image_size"][b].tolist())
        pred, truth = arguments["pred"][p0:p1][chosen >= 0].double(), arguments["truth"][used].double()
        totals.append(pair_costs(pred, truth, arguments["cost"], diagonal).diagonal().sum())
        pairs.append(len(used))
    return [torch.stack(totals) if totals else torch.zeros(0, dtype=torch.float64), torch.tensor(pairs)]


def _costs(size: tuple[int, int, int, float], generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    problems, rows, cols, share = size
    cost = torch.randn(problems, rows, cols, generator=generator, dtype=torch.float64)
    cost[torch.rand(cost.shape, generator=generator) < share] = math.inf
    return {
        "cost": cost.to(dtype),
        "num_rows": torch.randint(0, rows + 1, (problems,), generator=generator),
        "num_cols": torch.randint(0, cols + 1, (problems,), generator=generator),
    }


def _assigned(arguments: Arguments, match: Tensor) -> list[Tensor]:
    cost = arguments["cost"].double()
    totals, pairs = [], []
    for b in range(len(cost)):
        rows = (match[b] >= 0).nonzero().flatten()
        used = match[b][rows]
        assert len(used.unique()) == len(used), "a column is given twice"
        assert bool((rows < arguments["num_rows"][b]).all() and (used < arguments["num_cols"][b]).all())
        totals.append(cost[b, rows, used].sum())
        pairs.append(len(rows))
    return [torch.stack(totals), torch.tensor(pairs)]


def _all_arguments(arguments: Arguments) -> dict[str, Any]:
    names = ("pred", "truth", "pred_offsets", "truth_offsets", "pred_labels", "truth_labels", "image_size", "cost")
    return {name: arguments[name] for name in names}


def _unlabelled(**arguments: Any) -> Tensor:
    """Labels are not compared."""
    return box_match_reference(**{**arguments, "pred_labels": None, "truth_labels": None})


def _greedy(**arguments: Any) -> Tensor:
    """The cheapest pair first, then the cheapest that is left."""
    match = torch.full((len(arguments["pred"]),), -1, dtype=torch.int64)
    p_bounds, t_bounds = arguments["pred_offsets"].tolist(), arguments["truth_offsets"].tolist()
    for b, ((p0, p1), (t0, t1)) in enumerate(zip(_pairs(p_bounds), _pairs(t_bounds), strict=True)):
        diagonal = math.hypot(*arguments["image_size"][b].tolist())
        boxes = arguments["pred"][p0:p1].double(), arguments["truth"][t0:t1].double()
        costs = pair_costs(*boxes, arguments["cost"], diagonal)
        for _ in range(min(p1 - p0, t1 - t0)):
            row, column = divmod(int(costs.argmin()), t1 - t0)
            match[p0 + row] = t0 + column
            costs[row], costs[:, column] = math.inf, math.inf
    return match


def _pairs(bounds: list[int]) -> list[tuple[int, int]]:
    return list(zip(bounds, bounds[1:], strict=False))


def _in_order(cost: Tensor, num_rows: Tensor, num_cols: Tensor) -> Tensor:
    """The i-th row takes the i-th column."""
    rows = torch.arange(cost.shape[1]).expand(cost.shape[:2])
    return torch.where(rows < torch.minimum(num_rows, num_cols)[:, None], rows, -1)


_RAGGED = [(1, 1), (0, 3), (4, 0), (3, 5), (0, 0), (8, 2), (6, 6)]
_SUM = "total costs of at most 64 pairs, each a few float64 operations"
_ROUNDED = "of pairs whose totals differ by the rounding of fp32 costs on the device, either may be taken"
_TOLERANCE = {
    torch.float64: Tolerance(1e-9, _SUM),
    torch.float32: Tolerance(2e-6, _ROUNDED),
    torch.float16: Tolerance(2e-6, _ROUNDED),
    torch.bfloat16: Tolerance(2e-6, _ROUNDED),
}
_DENSE = [(64, 64), (20, 48), (31, 9)]

SPECS = (
    OpSpec(
        name="box_match",
        function=box_match,
        reference=box_match_reference,
        make=_match_case,
        sizes={
            "no problem": ([], "overlap"),
            "one pair": ([(1, 1)], "giou"),
            "ragged, labels": (_RAGGED, "overlap"),
            "ragged, iou": (_RAGGED, "iou"),
            "ragged, giou": (_RAGGED, "giou"),
            "ragged, medmo": (_RAGGED, "medmo"),
            "large": ([(64, 64), (17, 33)], "giou"),
        },
        tolerance=_TOLERANCE,
        exact=(1,),
        faults={"labels ignored": _unlabelled, "greedy": _greedy},
        op=_box_match,
        op_arguments=_all_arguments,
        outputs=_paid,
        kernel_sizes={
            "no problem": ([], "overlap"),
            "ragged, labels": (_RAGGED, "overlap"),
            "ragged, medmo": (_RAGGED, "medmo"),
            "64 columns": ([(3, 40), (33, 2)], "giou"),
            "past registers": ([(3, 70), (65, 2), (2, 2)], "iou"),
        },
        choices=choices,
        back_ends=BACK_ENDS,
        shape_class=lambda arguments: SHAPE,
        compile=Compile(
            sizes={
                "overlap, labels": ((_DENSE, "overlap"), torch.float32),
                "iou": ((_DENSE, "iou"), torch.float32),
                "giou": ((_DENSE, "giou"), torch.bfloat16),
                "medmo": ((_DENSE, "medmo"), torch.float32),
            },
            kinds=lambda size: {"few boxes": ([(1, 1), (16, 3)], size[1])},
        ),
        bench=Bench(
            sizes={"512 of 64 x 64": ([(64, 64)] * 512, "giou"), "512 of 16 x 16": ([(16, 16)] * 512, "giou")},
            cpu_sizes={"512 of 16 x 16": ([(16, 16)] * 512, "giou"), "512 of 64 x 64": ([(64, 64)] * 512, "giou")},
            slow_reference=True,
        ),
    ),
    OpSpec(
        name="assign",
        function=assign,
        reference=assign_reference,
        make=_costs,
        sizes={"one": (1, 1, 1, 0.0), "wide": (4, 3, 7, 0.0), "tall": (4, 7, 3, 0.2), "forbidden": (2, 3, 3, 1.0)},
        tolerance={torch.float64: Tolerance(1e-9, _SUM), torch.float32: Tolerance(1e-9, _SUM)},
        exact=(1,),
        faults={"in order": _in_order},
        op=_assign,
        outputs=_assigned,
        bench=Bench(
            sizes={"512 of 64 x 64": (512, 64, 64, 0.0)},
            cpu_sizes={"128 of 64 x 64": (128, 64, 64, 0.0)},
            slow_reference=True,
        ),
    ),
)

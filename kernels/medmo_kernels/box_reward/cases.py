"""What the walker and the benchmark know of box_reward."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..box_match.cases import ragged_boxes
from ..spec import Arguments, OpSpec, Tolerance
from .op import _box_reward, box_reward
from .reference import box_reward_reference

_OPTIONS: dict[str, Any] = {"lambda_fn": 0.0, "lambda_fp": 0.0, "squared": False, "penalty_per_truth": True}


def _case(
    size: tuple[Sequence[tuple[int, int]], str, dict[str, Any]], generator: torch.Generator, dtype: torch.dtype
) -> Arguments:
    counts, formula, options = size
    return {**ragged_boxes(counts, generator, dtype), "formula": formula, **_OPTIONS, **options}


def _scores(arguments: Arguments, result: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Return the scores and the number of pairs; which of two equal pairs was taken is free."""
    return [result[0], (result[1] >= 0).sum()]


_RAGGED = [(1, 1), (0, 3), (4, 0), (3, 5), (0, 0), (8, 2), (6, 6)]
_REASON = "a score is a mean of at most 64 ratios of areas"

SPECS = (
    OpSpec(
        name="box_reward",
        function=box_reward,
        reference=box_reward_reference,
        make=_case,
        sizes={
            "no problem": ([], "overlap", {}),
            "overlap": (_RAGGED, "overlap", {}),
            "iou": (_RAGGED, "iou", {}),
            "medmo": (_RAGGED, "medmo", {}),
            "medmo, priced": (_RAGGED, "medmo", {"lambda_fn": 0.3, "lambda_fp": 0.2, "squared": True}),
            "medmo, plain price": (_RAGGED, "medmo", {"lambda_fp": 0.1, "penalty_per_truth": False}),
        },
        benchmark_sizes={"512 of 64 x 64": ([(64, 64)] * 512, "overlap", {})},
        tolerance={torch.float64: Tolerance(1e-12, _REASON), torch.float32: Tolerance(2e-6, _REASON)},
        exact=(1,),
        op=_box_reward,
        outputs=_scores,
    ),
)

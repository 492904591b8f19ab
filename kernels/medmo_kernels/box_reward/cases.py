"""Cases of box_reward for the walker, the compiler gate and the benchmark."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..box_match.cases import ragged_boxes
from ..giou import overlap_terms
from ..spec import Arguments, Bench, Compile, OpSpec, Tolerance
from .op import BACK_ENDS, SHAPE, _box_reward, box_reward, choices
from .reference import box_reward_reference

_OPTIONS: dict[str, Any] = {"lambda_fn": 0.0, "lambda_fp": 0.0, "squared": False, "penalty_per_truth": True,
                            "iou_threshold": 0.5}  # fmt: skip


def _case(
    size: tuple[Sequence[tuple[int, int]], str, dict[str, Any]], generator: torch.Generator, dtype: torch.dtype
) -> Arguments:
    counts, formula, options = size
    return {**ragged_boxes(counts, generator, dtype), "formula": formula, **_OPTIONS, **options}


def _scores(arguments: Arguments, result: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Return the scores and the number of pairs; which of two equal pairs was taken is free."""
    return [result[0], (result[1] >= 0).sum()]


def _duplicates_paid(**arguments: Any) -> tuple[Tensor, Tensor]:
    """A predicted box that lost its true box to another is paid as well, by `iou`."""
    score, match = box_reward_reference(**arguments)
    if arguments["formula"] != "iou":
        return score, match
    pred, truth = arguments["pred"], arguments["truth"]
    same = arguments["pred_labels"][:, None] == arguments["truth_labels"][None]
    problems = [torch.arange(len(score)).repeat_interleave(arguments[f"{side}_offsets"].diff())
                for side in ("pred", "truth")]  # fmt: skip
    same &= problems[0][:, None] == problems[1][None]
    iou = torch.where(same, overlap_terms(pred[:, None], truth[None])[0], 0)
    lost = torch.where(match < 0, torch.cat([iou, iou.new_zeros(len(pred), 1)], dim=1).amax(1), 0)
    shared_by = torch.maximum(*(arguments[f"{side}_offsets"].diff() for side in ("pred", "truth")))
    return score.index_add(0, problems[0], lost / shared_by[problems[0]]), match


def _spurious_free(**arguments: Any) -> tuple[Tensor, Tensor]:
    """By `iou`, the sum is divided by the number of true boxes."""
    score, match = box_reward_reference(**arguments)
    num_pred, num_truth = (arguments[f"{side}_offsets"].diff() for side in ("pred", "truth"))
    ratio = torch.maximum(num_pred, num_truth) / num_truth
    return torch.where((num_truth > 0) & (arguments["formula"] == "iou"), score * ratio, score), match


def _free(**arguments: Any) -> tuple[Tensor, Tensor]:
    return box_reward_reference(**{**arguments, "lambda_fn": 0.0, "lambda_fp": 0.0})


def _nothing_scores_nothing(**arguments: Any) -> tuple[Tensor, Tensor]:
    score, match = box_reward_reference(**arguments)
    boxes = arguments["pred_offsets"].diff() + arguments["truth_offsets"].diff()
    return torch.where(boxes == 0, 0, score), match


_RAGGED = [(1, 1), (0, 3), (4, 0), (3, 5), (0, 0), (8, 2), (6, 6)]
_DENSE = [(64, 64), (20, 48), (31, 9)]
_PRICED = {"lambda_fn": 0.3, "lambda_fp": 0.2, "squared": True}
_PLAIN_PRICE = {"lambda_fp": 0.1, "penalty_per_truth": False}
_REASON = "a score is a mean of at most 64 ratios of areas"
_TOLERANCE = {
    torch.float64: Tolerance(1e-12, _REASON),
    torch.float32: Tolerance(2e-6, _REASON),
    torch.float16: Tolerance(2e-6, _REASON),
    torch.bfloat16: Tolerance(2e-6, _REASON),
}

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
            "f1": (_RAGGED, "f1", {}),
            "f1, strict": (_RAGGED, "f1", {"iou_threshold": 0.9}),
            "medmo": (_RAGGED, "medmo", {}),
            "medmo, priced": (_RAGGED, "medmo", _PRICED),
            "medmo, plain price": (_RAGGED, "medmo", _PLAIN_PRICE),
        },
        tolerance=_TOLERANCE,
        exact=(1,),
        faults={
            "duplicates paid": _duplicates_paid,
            "spurious boxes free": _spurious_free,
            "penalty dropped": _free,
            "a right nothing earns nothing": _nothing_scores_nothing,
        },
        op=_box_reward,
        outputs=_scores,
        kernel_sizes={
            "no problem": ([], "overlap", {}),
            "overlap": (_RAGGED[:6], "overlap", {}),
            "f1": (_RAGGED, "f1", {}),
            "medmo, priced": (_RAGGED, "medmo", _PRICED),
            "medmo, plain price": (_RAGGED[:4], "medmo", _PLAIN_PRICE),
            "past registers": ([(3, 70), (65, 2), (2, 2)], "iou", {}),
        },
        choices=choices,
        back_ends=BACK_ENDS,
        shape_class=lambda arguments: SHAPE,
        compile=Compile(
            sizes={
                "overlap, labels": ((_DENSE, "overlap", {}), torch.float32),
                "iou": ((_DENSE, "iou", {}), torch.bfloat16),
                "f1": ((_DENSE, "f1", {}), torch.float32),
                "medmo": ((_DENSE, "medmo", {}), torch.float32),
            },
            kinds=lambda size: {"few boxes": ([(1, 1), (16, 3)], *size[1:])},
        ),
        bench=Bench(
            sizes={
                "512 of 64 x 64": ([(64, 64)] * 512, "overlap", {}),
                "512 of 16 x 16": ([(16, 16)] * 512, "overlap", {}),
                "512 of 16 x 16, IoU": ([(16, 16)] * 512, "iou", {}),
            },
            cpu_sizes={
                "512 of 16 x 16, IoU": ([(16, 16)] * 512, "iou", {}),
                "512 of 64 x 64": ([(64, 64)] * 512, "overlap", {}),
            },
            slow_reference=True,
        ),
    ),
)

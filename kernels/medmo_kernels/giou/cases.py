"""Cases of the four ops of giou for the walker, the compiler gate and the benchmark."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..spec import Arguments, Bench, Compile, OpSpec, Tolerance, tensor_bytes
from .op import (
    BACK_ENDS,
    SHAPE,
    _giou,
    _pairwise_giou,
    box_terms,
    choices,
    giou,
    pairwise_box_terms,
    pairwise_giou,
)
from .reference import (
    box_terms_reference,
    giou_reference,
    pairwise_box_terms_reference,
    pairwise_giou_reference,
)

FLOPS_PER_PAIR = 33.0


def random_boxes(count: int, generator: torch.Generator, dtype: torch.dtype, side: float = 1000.0) -> Tensor:
    """Return (count, 4) boxes in a square image, every seventh without area, every eleventh the whole image."""
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * side
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    boxes[3::7, 2] = boxes[3::7, 0]
    boxes[5::11] = torch.tensor([0.0, 0.0, side, side], dtype=torch.float64)
    return boxes.to(dtype)


# Boxes of a unit image: their gradients are of the order of 1, so the tolerance means something for them.
def _aligned(size: int, generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    pred, target = (random_boxes(size, generator, dtype, 1.0) for _ in range(2))
    target[::5] = pred[::5]  # equal boxes: every minimum and maximum is a tie
    return {"pred": pred, "target": target}


def _pairwise(size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    *batch, num_pred, num_target = size
    count = int(torch.tensor(batch).prod()) if batch else 1
    pred = random_boxes(count * num_pred, generator, dtype, 1.0).reshape(*batch, num_pred, 4)
    target = random_boxes(count * num_target, generator, dtype, 1.0).reshape(*batch, num_target, 4)
    return {"pred": pred, "target": target}


def _ragged(size: Sequence[tuple[int, int]], generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    counts = torch.tensor(size, dtype=torch.int64).reshape(-1, 2)
    pred_offsets, target_offsets = (torch.cat([torch.zeros(1, dtype=torch.int64), c.cumsum(0)]) for c in counts.T)
    pred, target = (random_boxes(int(offsets[-1]), generator, dtype, 1.0) for offsets in (pred_offsets, target_offsets))
    return {
        "pred": pred,
        "target": target,
        "pred_offsets": pred_offsets,
        "target_offsets": target_offsets,
        "max_target": max((t for _, t in size), default=0) + 1,
    }


def _summed_union(reference: Any) -> Any:
    """The op with the intersection counted twice in the union: IoU = I / (A + B)."""

    def function(pred: Tensor, target: Tensor) -> Tensor:
        p, t = (pred, target) if pred.shape == target.shape else (pred[..., :, None, :], target[..., None, :, :])
        sides = [(b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (p, t)]
        terms = reference(pred, target)
        iou = box_terms_reference(p, t)[..., 0]
        return terms - iou + iou * 0.5 * (sides[0] + sides[1] > 0)

    return function


def _no_hull(pred: Tensor, target: Tensor) -> Tensor:
    return box_terms_reference(pred, target)[..., 0]


def _l1_of_one_axis(pred: Tensor, target: Tensor) -> Tensor:
    terms = box_terms_reference(pred, target)
    return torch.cat([terms[:, :2], (pred - target)[:, ::2].abs().sum(1, keepdim=True)], dim=1)


def _neighbours_targets(**arguments: Any) -> Tensor:
    """Every problem scores the first problem's targets."""
    return pairwise_box_terms(**{**arguments, "target": arguments["target"].roll(1, 0)})


def _unfilled(**arguments: Any) -> Tensor:
    """Columns past a problem's last target hold the next problem's."""
    target_offsets, pred = arguments["target_offsets"], arguments["pred"]
    problem = torch.bucketize(torch.arange(len(pred)), arguments["pred_offsets"][1:], right=True)
    others = target_offsets[problem][:, None] + torch.arange(arguments["max_target"])
    padded = torch.cat([arguments["target"], arguments["target"].new_zeros(1, 4)])
    return box_terms_reference(pred[:, None], padded[others.clamp(max=len(arguments["target"]))])


_SCORE = "a score is a few fp32 operations; 16-bit boxes are widened first, and only their gradients are rounded"
_TOLERANCE = {
    torch.float64: Tolerance(1e-12, "the closed-form backward sums in another order than autograd"),
    torch.float32: Tolerance(2e-6, _SCORE),
    torch.float16: Tolerance(2e-6, _SCORE),
    torch.bfloat16: Tolerance(2e-6, _SCORE),
}
_LEARNED = ("pred", "target")
_RAGGED = [(1, 1), (0, 3), (4, 0), (3, 5), (0, 0), (8, 2)]


def _ragged_arguments(arguments: Arguments) -> Arguments:
    """The registered op takes the width by another name, and a flag."""
    return {**arguments, "giou_only": False}



def _bytes(arguments: Arguments, num_scores: int) -> float:
    """Count the boxes, read once, and the fp32 scores, written once."""
    return tensor_bytes(arguments) + 4.0 * num_scores


SPECS = (
    OpSpec(
        name="giou",
        function=giou,
        reference=giou_reference,
        make=_aligned,
        sizes={"none": 0, "one": 1, "odd": 127, "many": 1003},
        tolerance=_TOLERANCE,
        differentiable=_LEARNED,
        faults={"union taken as the sum": _summed_union(giou_reference), "hull term dropped": _no_hull},
        op=_giou,
        op_arguments=lambda arguments: {**arguments, "giou_only": True},
        kernel_sizes={"none": 0, "odd": 259},
        choices=partial(choices, op="giou"),
        back_ends=BACK_ENDS,
        shape_class=lambda arguments: SHAPE,
        compile=Compile(
            sizes={"4096 pairs": (4096, torch.bfloat16), "4096 pairs, fp32": (4096, torch.float32)},
            kinds=lambda size: {"one": 1, "odd": 4097},
        ),
        bench=Bench(
            sizes={"1M pairs": 1 << 20},
            cpu_sizes={"64K pairs": 1 << 16},
            num_bytes=lambda arguments: _bytes(arguments, arguments["pred"].shape[0]),
            num_flops=lambda arguments: FLOPS_PER_PAIR * arguments["pred"].shape[0],
        ),
    ),
    OpSpec(
        name="box_terms",
        function=box_terms,
        reference=box_terms_reference,
        make=_aligned,
        sizes={"none": 0, "one": 1, "odd": 127},
        tolerance=_TOLERANCE,
        differentiable=_LEARNED,
        faults={"L1 of one axis": _l1_of_one_axis},
        op=_giou,
        op_arguments=lambda arguments: {**arguments, "giou_only": False},
        kernel_sizes={"odd": 259},
        choices=partial(choices, op="box_terms"),
        back_ends=BACK_ENDS,
        shape_class=lambda arguments: SHAPE,
        compile=Compile(
            sizes={"4096 pairs, fp32": (4096, torch.float32)},
            kinds=lambda size: {"one": 1, "odd": 4097},
        ),
        bench=Bench(
            sizes={"1M pairs": 1 << 20},
            cpu_sizes={"64K pairs": 1 << 16},
            num_bytes=lambda arguments: _bytes(arguments, 3 * arguments["pred"].shape[0]),
            num_flops=lambda arguments: FLOPS_PER_PAIR * arguments["pred"].shape[0],
        ),
    ),
    OpSpec(
        name="pairwise_giou",
        function=pairwise_giou,
        reference=pairwise_giou_reference,
        make=_pairwise,
        sizes={"none": (0, 3), "one": (1, 1), "odd": (7, 13), "batch": (2, 3, 5, 4), "no batch": (0, 2, 2)},
        tolerance=_TOLERANCE,
        differentiable=_LEARNED,
        faults={"union taken as the sum": _summed_union(pairwise_giou_reference)},
        op=_pairwise_giou,
        op_arguments=lambda a: {**a, "pred_offsets": None, "target_offsets": None, "width": a["target"].shape[-2],
                                "giou_only": True},
        kernel_sizes={"no target": (3, 0), "batch": (2, 3, 5, 4), "wide": (9, 37)},
        choices=partial(choices, op="pairwise_giou"),
        back_ends=BACK_ENDS,
        shape_class=lambda arguments: SHAPE,
        compile=Compile(
            sizes={"64 x 64 x 64": ((64, 64, 64), torch.bfloat16), "fp32": ((64, 64, 64), torch.float32)},
            kinds=lambda size: {"one": (1, 1), "odd": (3, 17, 33)},
        ),
        bench=Bench(
            sizes={"512 x 64 x 64": (512, 64, 64)},
            cpu_sizes={"16 x 64 x 64": (16, 64, 64)},
            num_bytes=lambda a: _bytes(a, a["pred"].shape[:-1].numel() * a["target"].shape[-2]),
            num_flops=lambda a: FLOPS_PER_PAIR * a["pred"].shape[:-1].numel() * a["target"].shape[-2],
        ),
    ),
    OpSpec(
        name="pairwise_box_terms",
        function=pairwise_box_terms,
        reference=pairwise_box_terms_reference,
        make=_ragged,
        sizes={"no problem": [], "one": [(1, 1)], "ragged": _RAGGED, "no target": [(3, 0)]},
        tolerance=_TOLERANCE,
        differentiable=_LEARNED,
        faults={"targets of the neighbour": _neighbours_targets, "columns past the last target filled": _unfilled},
        op=_pairwise_giou,
        op_arguments=_ragged_arguments,
        kernel_sizes={"no problem": [], "ragged": _RAGGED, "wide": [(2, 37), (9, 1)]},
        choices=partial(choices, op="pairwise_box_terms"),
        back_ends=BACK_ENDS,
        shape_class=lambda arguments: SHAPE,
        compile=Compile(
            sizes={"64 of 64 x 64, fp32": ([(64, 64)] * 64, torch.float32)},
            kinds=lambda size: {"one": [(1, 1)], "odd": [(3, 17), (20, 0)]},
        ),
        bench=Bench(
            sizes={"512 x 64 x 64": [(64, 64)] * 512},
            cpu_sizes={"16 x 64 x 64": [(64, 64)] * 16},
            num_bytes=lambda a: _bytes(a, 3 * a["pred"].shape[0] * a["max_target"]),
            num_flops=lambda a: FLOPS_PER_PAIR * a["pred"].shape[0] * a["max_target"],
        ),
    ),
)  # fmt: skip

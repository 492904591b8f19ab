"""What the walker and the benchmark know of giou and pairwise_giou."""

import torch
from torch import Tensor

from ..spec import Arguments, OpSpec, Tolerance
from .op import _giou, _pairwise_giou, giou, pairwise_giou
from .reference import giou_reference, pairwise_giou_reference

FLOPS_PER_PAIR = 33.0


def random_boxes(count: int, generator: torch.Generator, dtype: torch.dtype, side: float = 1000.0) -> Tensor:
    """Return (count, 4) boxes in a square image, every seventh without area, every eleventh the whole image."""
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * side
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    boxes[3::7, 2] = boxes[3::7, 0]
    boxes[5::11] = torch.tensor([0.0, 0.0, side, side], dtype=torch.float64)
    return boxes.to(dtype)


def _aligned(size: int, generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    pred, target = random_boxes(size, generator, dtype), random_boxes(size, generator, dtype)
    target[::5] = pred[::5]  # equal boxes: every minimum and maximum is a tie
    return {"pred": pred, "target": target}


def _pairwise(size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    *batch, num_pred, num_target = size
    count = int(torch.tensor(batch).prod()) if batch else 1
    pred = random_boxes(count * num_pred, generator, dtype).reshape(*batch, num_pred, 4)
    return {"pred": pred, "target": random_boxes(count * num_target, generator, dtype).reshape(*batch, num_target, 4)}


_TOLERANCE = {
    torch.float64: Tolerance(1e-12, "the closed-form backward sums in another order than autograd"),
    torch.float32: Tolerance(2e-6, "a score is a few fp32 operations on areas of 1e6"),
    torch.bfloat16: Tolerance(1e-2, "gradients are cast to bf16, scores are fp32 of bf16 boxes"),
}

SPECS = (
    OpSpec(
        name="giou",
        function=giou,
        reference=giou_reference,
        make=_aligned,
        sizes={"none": 0, "one": 1, "odd": 127, "many": 1003},
        benchmark_sizes={"1M pairs": 1 << 20},
        tolerance=_TOLERANCE,
        differentiable=("pred", "target"),
        op=_giou,
        num_flops=lambda arguments: FLOPS_PER_PAIR * arguments["pred"].shape[0],
    ),
    OpSpec(
        name="pairwise_giou",
        function=pairwise_giou,
        reference=pairwise_giou_reference,
        make=_pairwise,
        sizes={"none": (0, 3), "one": (1, 1), "odd": (7, 13), "batch": (2, 3, 5, 4), "no batch": (0, 2, 2)},
        benchmark_sizes={"512 x 64 x 64": (512, 64, 64)},
        tolerance=_TOLERANCE,
        differentiable=("pred", "target"),
        op=_pairwise_giou,
        num_flops=lambda a: FLOPS_PER_PAIR * a["pred"].shape[:-1].numel() * a["target"].shape[-2],
    ),
)

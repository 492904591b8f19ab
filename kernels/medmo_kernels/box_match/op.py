"""Registration of box_match and assign.

CUDA: box_match is one Triton launch for boxes of up to 32 bits. On the CPU, for float64 boxes and for assign: the
native library where it is built, else the reference, on the host.
"""

from typing import Any

import torch
from torch import Tensor

from .. import back_ends, runtime
from ..back_ends import Choice
from ..fit import dense
from .reference import COSTS, Problems, assign_reference, box_match_reference, check_counts, check_spans

OP = "box_match"
SHAPE = "fp32, fp16, bf16"
"""The one class of shapes in the table: a match is one launch, whatever the number of boxes."""


def host_form() -> str:
    """Return which code solves problems on the host now."""
    return "native" if runtime.has_native() else "reference"


def _refusal(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    if backend == "native":
        return "" if runtime.has_native() else f"native library {runtime.native_status()}"
    return runtime.triton_refusal(device, dtype) if backend == "triton" else ""


BACK_ENDS = back_ends.declare("box_match", OP, ("triton", "native"), plain=host_form, refusal=_refusal)
"""Names that the table may use; `native` copies the problems to the host."""


def assign(cost: Tensor, num_rows: Tensor | None = None, num_cols: Tensor | None = None) -> Tensor:
    """Assign rows to columns, one to one, in a batch of cost matrices.

    Of all assignments with the most allowed pairs, the cheapest. A cost that is not finite forbids its pair.

    Shapes: B problems of at most R rows and C columns.
    Numerics: float64 inside, exact up to its rounding; deterministic. Among equally cheap assignments any may be given.
    Devices: solved on the host, to which costs on CUDA are copied; `box_match` stays on the device.

    Args:
        cost: (B, R, C) costs.
        num_rows: (B,) int64 rows of each problem that count; None: all.
        num_cols: (B,) int64 columns of each problem that count; None: all.

    Returns:
        (B, R) int64 column of each row, -1 where it has none.

    Raises:
        ValueError: shapes that do not fit, or counts beyond the matrices.
    """
    if cost.ndim != 3:
        raise ValueError(f"assign: cost {tuple(cost.shape)}, expected (B, R, C)")
    counts = []
    for name, given, most in (("num_rows", num_rows, cost.shape[1]), ("num_cols", num_cols, cost.shape[2])):
        count = torch.full(cost.shape[:1], most, dtype=torch.int64, device=cost.device) if given is None else given
        if count.shape != cost.shape[:1] or count.dtype != torch.int64:
            given_as = f"{name} {tuple(count.shape)} {count.dtype}"
            raise ValueError(f"assign: {given_as}, cost {tuple(cost.shape)}: expected one int64 per problem")
        counts.append(count)
    return _assign(cost, *counts)


def box_match(
    pred: Tensor,
    truth: Tensor,
    pred_offsets: Tensor,
    truth_offsets: Tensor,
    *,
    pred_labels: Tensor | None = None,
    truth_labels: Tensor | None = None,
    image_size: Tensor | None = None,
    cost: str = "overlap",
) -> Tensor:
    """Match predicted with true boxes one to one, at the least total cost, in every problem of a ragged batch.

    Shapes: B problems, P predicted and T true boxes over all problems; problem b has rows offsets[b] to offsets[b + 1].
    Units: pixels, or any unit that boxes and image_size share.
    Numerics: Min(P, T) pairs of a problem are matched, fewer where pairs are forbidden; a box with a coordinate that is
        not finite matches nothing. On the CPU, and for float64 boxes, float64 inside. On CUDA costs are fp32 and the
        search is exact for them, in float64: the total is within 1e-6 a pair of the least. Deterministic; among equally
        cheap assignments any may be given, on each device another.
    Devices: CUDA does not wait for the host. Problems of up to 64 boxes a side are solved by one warp in registers,
        larger ones in the same launch by one warp in a scratch buffer of 24 B per box. Boxes of whole numbers are cast
        to fp32 there, exact up to 2^24; float64 boxes on CUDA are copied to the host.

    Args:
        pred: (P, 4) predicted boxes x1, y1, x2, y2.
        truth: (T, 4) true boxes.
        pred_offsets: (B + 1,) int64. On CUDA offsets are not checked, because it would make the host wait: matches of
            wrong ones are wrong, but nothing outside the boxes is read or written.
        truth_offsets: (B + 1,) int64.
        pred_labels: (P,) int64 classes; with `truth_labels`, boxes of different classes never match.
        truth_labels: (T,) int64 classes.
        image_size: (B, 2) width and height, needed by cost `medmo`.
        cost: `overlap` = 1 - (IoU + max(0, GIoU)) / 2, `iou` = 1 - IoU, `giou` = 1 - GIoU, or `medmo` =
            5 L1 + 2 (1 - GIoU) with L1 over twice the image diagonal.

    Returns:
        (P,) int64 row of `truth` that each predicted box is matched with, or -1.

    Raises:
        ValueError: shapes or the cost's name do not fit; on the CPU also offsets that do not rise from 0 to the number
            of boxes.

    Reference: shortest augmenting paths with potentials, Jonker and Volgenant 1987; Crouse 2016.
    """
    problems = Problems(pred, truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size)
    check_problems("box_match", problems)
    if cost not in COSTS:
        raise ValueError(f"box_match: unknown cost {cost!r}, expected one of {', '.join(COSTS)}")
    if cost == "medmo" and image_size is None:
        raise ValueError("box_match: cost 'medmo' divides by the image diagonal: give image_size (B, 2)")
    return _box_match(*problems, cost)


def check_problems(name: str, problems: Problems) -> None:
    """Check the shapes of a ragged batch of problems.

    Args:
        name: name of the op, for the message.
        problems: arguments of the op.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message says which, with both shapes.
    """
    pred, truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size = problems
    shapes = f"pred {tuple(pred.shape)}, truth {tuple(truth.shape)}"
    if any(b.ndim != 2 or b.shape[1] != 4 for b in (pred, truth)):
        raise ValueError(f"{name}: {shapes}: expected (P, 4) and (T, 4)")
    if pred_offsets.ndim != 1 or pred_offsets.shape != truth_offsets.shape or pred_offsets.shape[0] < 1:
        raise ValueError(
            f"{name}: pred_offsets {tuple(pred_offsets.shape)} and truth_offsets {tuple(truth_offsets.shape)}, "
            "expected (B + 1,) twice"
        )
    if pred_offsets.dtype != torch.int64 or truth_offsets.dtype != torch.int64:
        raise ValueError(f"{name}: offsets are {pred_offsets.dtype} and {truth_offsets.dtype}, expected int64 twice")
    if (pred_labels is None) != (truth_labels is None):
        raise ValueError(f"{name}: only one of pred_labels and truth_labels is given: give both or neither")
    for field, labels, boxes in (("pred_labels", pred_labels, pred), ("truth_labels", truth_labels, truth)):
        if labels is not None and (labels.shape != boxes.shape[:1] or labels.dtype != torch.int64):
            given = f"{field} {tuple(labels.shape)} {labels.dtype}"
            raise ValueError(f"{name}: {given}, {shapes}: expected one int64 per box")
    given = (truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size)
    strangers = {str(tensor.device) for tensor in given if tensor is not None and tensor.device != pred.device}
    if strangers:
        raise ValueError(f"{name}: pred is on {pred.device}, other arguments on {', '.join(sorted(strangers))}")
    if image_size is not None and tuple(image_size.shape) != (problems.num_problems, 2):
        expected = f"expected ({problems.num_problems}, 2): width, height"
        raise ValueError(f"{name}: image_size {tuple(image_size.shape)}, {expected}")


def choices(device: torch.device) -> dict[str, Choice]:
    """Say which back end serves which problems on a device."""
    refused = () if host_form() == "native" else (("native", runtime.native_status()),)
    boxes = back_ends.explain(OP, SHAPE, device, torch.float32)
    if boxes.backend == "reference":
        boxes = Choice(host_form(), boxes.reason, (*boxes.refused, *refused))
    return {
        f"boxes in {SHAPE}": boxes,
        "boxes in float64; assign": Choice(host_form(), "solved on the host", refused),
    }


@torch.library.custom_op("medmo_kernels::assign", mutates_args=())
def _assign(cost: Tensor, num_rows: Tensor, num_cols: Tensor) -> Tensor:
    check_counts(num_rows, num_cols, cost.shape[1], cost.shape[2])
    if not runtime.has_native():
        return assign_reference(cost, num_rows, num_cols)
    inputs = [dense(tensor.cpu()) for tensor in (cost.double(), num_rows, num_cols)]
    return torch.ops.medmo_native.assign(*inputs).to(cost.device)


@_assign.register_fake
def _(cost: Tensor, num_rows: Tensor, num_cols: Tensor) -> Tensor:
    return cost.new_empty(cost.shape[:2], dtype=torch.int64)


@torch.library.custom_op("medmo_kernels::box_match", mutates_args=())
def _box_match(
    pred: Tensor,
    truth: Tensor,
    pred_offsets: Tensor,
    truth_offsets: Tensor,
    pred_labels: Tensor | None,
    truth_labels: Tensor | None,
    image_size: Tensor | None,
    cost: str,
) -> Tensor:
    problems = Problems(pred, truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size)
    dtype = back_ends.deciding_dtype(pred, truth)
    if back_ends.choose(OP, SHAPE, pred.device, dtype).backend == "triton":
        from .launch import box_match_triton

        return box_match_triton(problems, COSTS.index(cost))
    if not runtime.has_native():
        options = dict(zip(problems._fields[4:], problems[4:], strict=True))
        return box_match_reference(*problems[:4], **options, cost=cost)
    on_host: list[Any] = [None if tensor is None else tensor.cpu() for tensor in problems]
    return _match_natively(cost, Problems(*on_host)).to(pred.device)


def _match_natively(cost: str, problems: Problems) -> Tensor:
    pred, truth, pred_offsets, truth_offsets, pred_labels, truth_labels, image_size = problems
    check_spans(pred_offsets, len(pred), "pred_offsets")
    check_spans(truth_offsets, len(truth), "truth_offsets")
    nothing = pred_offsets.new_empty(0)
    labels = [nothing if labels is None else dense(labels) for labels in (pred_labels, truth_labels)]
    # The native op takes no optional tensors: empty labels mean none, and the costs that need no diagonal ignore it.
    diagonal = pred.new_zeros(problems.num_problems, dtype=torch.float64)
    if image_size is not None:
        diagonal = image_size.double().square().sum(1).sqrt()
    boxes = (dense(pred.double()), dense(truth.double()))
    offsets = (dense(pred_offsets), dense(truth_offsets))
    has_labels = pred_labels is not None
    return torch.ops.medmo_native.box_match(*boxes, *offsets, *labels, has_labels, diagonal, COSTS.index(cost))


@_box_match.register_fake
def _(pred: Tensor, *rest: Any) -> Tensor:
    return pred.new_empty(pred.shape[:1], dtype=torch.int64)

"""Launcher of the box_match kernel, and the arguments of every kernel that matches boxes."""

# The options of a launch are no parameters of the kernel.
# pyright: reportCallIssue=false, reportArgumentType=false

import torch
from torch import Tensor

from ..fit import dense
from ..placement import on_device_of_tensors
from ..tables import tuned
from . import triton_kernel as kernels
from .reference import Problems

ROOM = "box_match"
REGISTER_COLUMNS = 64
"""Columns of the largest problem that is solved in registers."""


def problem_arguments(problems: Problems) -> tuple[list[Tensor | None], list[Tensor | int], dict[str, bool]]:
    """Prepare what kernels that call `match_problem` read: problems, scratch, and constants."""
    pred, truth = problems.pred, problems.truth
    if pred.dtype != truth.dtype or not pred.is_floating_point():
        problems = problems._replace(pred=pred.float(), truth=truth.float())
    has_labels = problems.pred_labels is not None
    if not has_labels:  # pointers that no program follows
        problems = problems._replace(pred_labels=problems.pred_offsets, truth_labels=problems.truth_offsets)
    large = max(len(pred), len(truth)) > REGISTER_COLUMNS
    size = 2 * (len(pred) + len(truth)) if large else 0
    memory = (pred.new_empty(size, dtype=dtype) for dtype in (torch.float64, torch.int32))
    scratch = [*memory, len(pred), len(truth)]
    return [dense(x) for x in problems], scratch, {"LABELS": has_labels, "LARGE": large}


@on_device_of_tensors
def box_match_triton(problems: Problems, cost: int) -> Tensor:
    """Match all problems in one launch; `cost` is an index into COSTS."""
    match = problems.pred.new_empty(len(problems.pred), dtype=torch.int64)
    if len(problems.pred):
        read, scratch, constants = problem_arguments(problems)
        blocks, options, _ = tuned(ROOM, "match", problems.pred)
        kernels.box_match_kernel[(problems.num_problems,)](
            *read, match, *scratch, COST=cost, **constants, **blocks, **options
        )
    return match

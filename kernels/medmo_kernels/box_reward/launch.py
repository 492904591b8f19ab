"""Launcher of the box_reward kernel."""

# The options of a launch are no parameters of the kernel.
# pyright: reportCallIssue=false, reportArgumentType=false

import torch
from torch import Tensor

from ..box_match.launch import problem_arguments
from ..box_match.reference import Problems
from ..placement import on_device_of_tensors
from ..tables import tuned
from . import triton_kernel as kernels
from .reference import FORMULAS, Pay

ROOM = "box_reward"


@on_device_of_tensors
def box_reward_triton(problems: Problems, pay: Pay) -> tuple[Tensor, Tensor]:
    """Match and score all problems in one launch."""
    match = problems.pred.new_empty(len(problems.pred), dtype=torch.int64)
    score = problems.pred.new_empty(problems.num_problems, dtype=torch.float32)
    if problems.num_problems:
        read, scratch, constants = problem_arguments(problems)
        blocks, options, _ = tuned(ROOM, "reward", problems.pred)
        # Flags are numbers: as constants, each combination would compile another kernel.
        numbers = (pay.lambda_fn, pay.lambda_fp, pay.iou_threshold, float(pay.squared), float(pay.penalty_per_truth))
        kernels.box_reward_kernel[(problems.num_problems,)](
            *read, match, score, *scratch, *numbers, FORMULA=FORMULAS.index(pay.formula),
            **constants, **blocks, **options,
        )  # fmt: skip
    return score, match

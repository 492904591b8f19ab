"""The truth that ways are compared with: float64 at a small size, and ours at the size that is timed."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from medmo_core.models.medmo import MedMO
from medmo_kernels import runtime

from ..suite.comparison import weakest
from ..suite.schema import Check

LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-3}
"""Relative difference of two losses: bf16 rounds every activation, but the rounding of many tokens averages out."""


def distance(got: Tensor, truth: Tensor) -> float:
    """Return the norm of the difference over the norm of the truth; a NaN stays one."""
    wide = torch.float64 if truth.dtype == torch.float64 else torch.float32
    truth = truth.to(wide)
    return float((got.to(wide) - truth).norm() / truth.norm())


def bound(plain: float, dtype: torch.dtype) -> float:
    """Say how far from float64 a result may be, given how far the reference in the same dtype is."""
    return 2 * plain + 2 * torch.finfo(dtype).eps


def loss_check(against: str, loss: float, truth: float, dtype: torch.dtype) -> Check:
    """Compare two losses."""
    return Check(against, abs(loss / truth - 1), LOSS_TOLERANCE[dtype])


class Judge:
    """The truth at a small size, and the bounds within which ways must agree with it.

    Args:
        truth: tensors by float64 at the small size.
        plain: the same by the reference in the dtype at hand.
        dtype: dtype of the ways.
    """

    def __init__(self, truth: Sequence[Tensor], plain: Sequence[Tensor], dtype: torch.dtype) -> None:
        self.truth = [tensor.detach() for tensor in truth]
        self.bounds = [bound(distance(p, t), dtype) for p, t in zip(plain, self.truth, strict=True)]
        self.ours: list[Tensor] | None = None

    def check(self, small: Sequence[Tensor], timed: Sequence[Tensor], *, ours: bool) -> Check:
        """Compare a way's tensors of the small size with the truth, and those that are timed with ours.

        Args:
            small: as many as the truth has.
            timed: the same tensors at the size that is timed; ours come first and are kept.
            ours: whether they are ours.

        Returns:
            The check that comes nearest to its bound.
        """
        checks = [
            Check("float64 at a small size", distance(got, truth), limit)
            for got, truth, limit in zip(small, self.truth, self.bounds, strict=True)
        ]
        if ours:
            self.ours = [tensor.detach() for tensor in timed]
        elif self.ours is not None:  # each may be as far from the truth as the bound allows
            checks += [
                Check("ours", distance(got, mine), 2 * limit)
                for got, mine, limit in zip(timed, self.ours, self.bounds, strict=True)
            ]
        return weakest(*checks)


def holding(shared: object, calls: Mapping[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """Return calls that keep what the ways share for as long as one of them is there."""
    return {direction: partial(_call, shared, call) for direction, call in calls.items()}


def _call(shared: object, call: Callable[[], object]) -> object:
    return call()


@contextmanager
def reference_ops() -> Iterator[None]:
    """Serve every op by its definition."""
    before = os.environ.get(runtime.SWITCH)
    os.environ[runtime.SWITCH] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ[runtime.SWITCH]
        else:
            os.environ[runtime.SWITCH] = before


def widened(model: MedMO) -> MedMO:
    """Return a copy of a model in float64, on the same device."""
    return deepcopy(model).double()

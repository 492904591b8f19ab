"""Modules and the whole model beside transformers' (stock, with Liger, with its best attention, compiled)."""

import torch

from .suite.comparison import Comparison, walk
from .suite.schema import Row

ORDER = ("train_step", "decode", "prefill", "forward", "vision_tower", "projector", "decoder_block")
"""Files of modules/, the most telling first: a run may be stopped early."""


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    return walk("benchmarks.modules", ORDER, device, short)


def test_module(collect: Row) -> None:
    """Time one way."""

"""Recipes beside their peers: training steps, rollouts, rewards, data and checkpoints; and how cost grows."""

import torch

from .suite.comparison import Comparison, walk
from .suite.schema import Row

ORDER = ("sft_step", "shared_prefix", "grpo_step", "grpo_update", "rollout", "rewards", "loader", "checkpoint",
         "scaling", "processes")  # fmt: skip
"""Files of recipes/, the most telling first: a run may be stopped early."""


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    return walk("benchmarks.recipes", ORDER, device, short)


def test_recipe(collect: Row) -> None:
    """Time one way."""

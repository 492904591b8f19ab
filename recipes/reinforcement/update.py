"""One pass of the optimiser over a sampled batch, summed up in numbers.

Shapes: L completion tokens.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from medmo_core.losses import PolicyLoss

from ..settings.run_config import Grpo
from .completions import PolicyBatch

SUMS = ("tokens", "clipped", "kl", "sampler_gap", "importance", "importance_limited")


@dataclass
class Update:
    """One pass over a sampled batch, as this process saw it."""

    sums: Tensor = field(default_factory=lambda: torch.zeros(len(SUMS), dtype=torch.float64))
    """Over tokens with a weight, by the names in SUMS."""
    losses: list[Tensor] = field(default_factory=list)
    """Of each micro-batch."""
    loss: float = 0.0
    """Of the step, over all processes."""
    grad_norm: float = 0.0
    lr: float | None = None
    """None: nothing could be learned, and no step was taken."""

    def add(self, policy: PolicyLoss, batch: PolicyBatch, old_logps: Tensor, grpo: Grpo) -> None:
        """Count a micro-batch.

        Args:
            policy: its loss.
            batch: the micro-batch.
            old_logps: (L,) of the policy that sampled, as the trainer computes them.
            grpo: the importance that limits are counted of.
        """
        counted = batch.token_weights > 0
        gap = torch.where(counted, (old_logps - batch.sampled_logps).abs(), 0.0)
        limited = policy.importance >= grpo.importance_cap if grpo.importance.endswith("truncate") else (
            policy.importance == 0.0)  # fmt: skip
        parts = (counted, policy.clipped, policy.kl * counted, gap, policy.importance * counted, limited & counted)
        self.sums += torch.stack([part.double().sum() for part in parts]).cpu()
        self.losses.append(policy.total.detach().double().cpu())

"""The update of GRPO: a group as one prompt with branches beside rows that repeat the prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medmo_core.data.document import Document
from medmo_core.losses import PolicyObjective
from medmo_core.models import MedMO
from medmo_recipes.reinforcement.completions import Completion, PolicyBatch, pack_completions

from ..suite.comparison import Comparison
from .layouts import Learning, compare_layouts, shape_of

GROUP, LENGTH = 8, 40
"""Answers, and tokens of each."""


def lay_out(items: Sequence[Document], share: bool) -> PolicyBatch:
    """Pack a group with one advantage a completion."""
    lengths = [int((item.labels >= 0).sum()) for item in items if item.labels is not None]
    rows = zip(items, torch.linspace(-1.0, 1.3, len(items)).tolist(), lengths, strict=True)
    weight = 1.0 / sum(lengths)
    completions = [Completion(item, advantage, weight, [-1.0] * length) for item, advantage, length in rows]
    return pack_completions(completions, share_prefixes=share)


def step(model: MedMO, group: PolicyBatch, **settings: Any) -> Tensor:
    """Run the policy-gradient loss forward and backward, the transfer of the group included."""
    group = group.to(model.head_weight.device)
    policy = model.policy_loss(group.batch, group.advantages, group.token_weights, **settings)
    policy.total.backward()
    return policy.total.detach()


def step_off_policy(model: MedMO, group: PolicyBatch) -> Tensor:
    """Run it with ratios that are clipped and a KL term: all that the loss can depend on."""
    with torch.no_grad():
        now = model.token_logprobs(group.batch.to(model.head_weight.device))
    old = now + torch.linspace(-0.4, 0.4, len(now), dtype=now.dtype, device=now.device)
    return step(model, group, old_logps=old, ref_logps=now - 0.1, objective=PolicyObjective(beta=0.05))


GRPO = Learning(lay_out, step, step_off_policy)


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    return [compare_layouts("grpo_update", GRPO, shape_of(device, GROUP, LENGTH, short=short), device)]

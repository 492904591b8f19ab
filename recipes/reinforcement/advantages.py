"""Advantages: how much likelier each completion of a group is to be made, given what its rewards are.

Shapes: P prompts, G generations per prompt (the group).

Reference: Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1 (group_std); Liu et al., Dr. GRPO, arXiv 2503.20783
(centred); Ahmadian et al., RLOO, arXiv 2402.14740 (leave_one_out); Yu et al., DAPO, arXiv 2503.14476, eq. 13 (answers
that are too long).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..settings.reinforce import Advantage
from ..settings.section import ConfigError

STD_FLOOR = 1e-4  # added to a group's standard deviation, as in published GRPO code: a near-tie is not blown up


def combine(
    components: Mapping[str, Sequence[float | None]], weights: Mapping[str, float], *, normalise: bool
) -> Tensor:
    """Weigh the components of a group's rewards together.

    Args:
        components: reward name -> (G,) values; None where it does not apply to a completion.
        weights: reward name -> weight.
        normalise: first take each component's mean in the group away and divide by its standard deviation, so that
            a component with a wide spread does not drown the others (as GDPO does); one that says the same of all
            completions then counts as 0.

    Returns:
        (G,) float64, the weighted mean over the components that apply; 0 where none does.

    Raises:
        ConfigError: no weight is above zero.

    Reference: GDPO, arXiv 2601.05242 (components are normalised apart; without its last step over the whole batch).
    """
    if not any(weight > 0 for weight in weights.values()):
        raise ConfigError(f"rewards.weights = {dict(weights)}: expected at least one weight above 0")
    raw_NG = torch.tensor(
        [[float("nan") if v is None else v for v in components[name]] for name in weights], dtype=torch.float64
    )
    applies_NG = ~raw_NG.isnan()
    values_NG = torch.where(applies_NG, raw_NG, 0.0)
    if normalise:
        values_NG = torch.stack([_spread(v, on) for v, on in zip(values_NG, applies_NG, strict=True)])
    weights_NG = torch.tensor(list(weights.values()), dtype=torch.float64)[:, None] * applies_NG
    total_G = weights_NG.sum(dim=0)
    return torch.where(total_G > 0, (weights_NG * values_NG).sum(dim=0) / total_G.clamp(min=1e-300), 0.0)


def _spread(values_G: Tensor, applies_G: Tensor) -> Tensor:
    """Return one component in standard deviations from its mean, over the completions it applies to."""
    own = values_G[applies_G]
    if len(own) < 2 or own.amax() == own.amin():
        return torch.zeros_like(values_G)
    return torch.where(applies_G, (values_G - own.mean()) / (own.std() + STD_FLOOR), 0.0)


def group_advantages(rewards_PG: Tensor, kind: Advantage) -> Tensor:
    """Compare each completion with its own group.

    Args:
        rewards_PG: (P, G) rewards.
        kind: "group_std": less the group's mean, over its standard deviation, so that easy and hard prompts weigh
            the same; "centred": without the division; "leave_one_out": less the mean of the others, which is "centred"
            times G / (G - 1) and has no bias.

    Returns:
        (P, G); exactly 0 where all rewards of a group are equal.
    """
    size = rewards_PG.shape[1]
    centred = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    if kind == "group_std":
        centred = centred / (rewards_PG.std(dim=1, keepdim=True) + STD_FLOOR)
    elif kind == "leave_one_out":
        centred = centred * (size / (size - 1))
    # The mean of equal numbers can differ from them in the last bit.
    flat = rewards_PG.amax(dim=1, keepdim=True) == rewards_PG.amin(dim=1, keepdim=True)
    return centred.masked_fill(flat, 0.0)


def overlong_penalties(lengths: Sequence[int], *, longest: int, overlong_tokens: int) -> list[float]:
    """Return what completions near the longest length cost: 0, and from `overlong_tokens` before it linearly to -1.

    Args:
        lengths: (G,) tokens of each completion, the stop token included.
        longest: tokens at which a completion is cut.
        overlong_tokens: width of the zone, at least 1.
    """
    free = longest - overlong_tokens
    return [-min(1.0, max(0, length - free) / overlong_tokens) for length in lengths]

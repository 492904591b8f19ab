"""Settings of the policy-gradient losses: which loss, where it clips, and what it corrects."""

from dataclasses import dataclass

from ..choices import Importance, Loss


@dataclass(frozen=True, kw_only=True)
class PolicyObjective:
    """A policy-gradient loss with its settings.

    Attributes:
        loss: kind of loss.
        epsilon_low: ratios are clipped to 1 - epsilon_low from below; unused by cispo.
        epsilon_high: ratios are clipped to 1 + epsilon_high from above.
        beta: factor of the KL term, which counts where log-probabilities of the starting policy are given.
        importance: correction for a sampler whose probabilities are not the trainer's.
        importance_cap: largest factor of that correction.
    """

    loss: Loss = "dapo"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    beta: float = 0.0
    importance: Importance = "none"
    importance_cap: float = 2.0


DAPO = PolicyObjective()
"""The loss where none is named: the mean over all tokens, clipped to 0.2 on both sides."""

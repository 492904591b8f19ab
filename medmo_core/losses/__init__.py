"""Losses; one idea a file."""

from .chunked_head import TokenLosses, linear_cross_entropy, linear_token_losses, token_logprobs
from .grpo import PolicyLoss, importance_weights, linear_grpo_loss, policy_loss
from .policy_objective import PolicyObjective

__all__ = [
    "PolicyLoss",
    "PolicyObjective",
    "TokenLosses",
    "importance_weights",
    "linear_cross_entropy",
    "linear_grpo_loss",
    "linear_token_losses",
    "policy_loss",
    "token_logprobs",
]

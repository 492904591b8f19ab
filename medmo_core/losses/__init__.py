"""Losses; one idea a file."""

from .chunked_head import TokenLosses, linear_cross_entropy, linear_token_losses, token_logprobs
from .grpo import PolicyLoss, importance_weights, linear_grpo_loss, policy_loss

__all__ = [
    "PolicyLoss",
    "TokenLosses",
    "importance_weights",
    "linear_cross_entropy",
    "linear_grpo_loss",
    "linear_token_losses",
    "policy_loss",
    "token_logprobs",
]

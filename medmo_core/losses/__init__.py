"""Losses; one idea a file."""

from .chunked_head import TokenLosses, linear_cross_entropy, linear_token_losses, token_logprobs
from .grpo import linear_grpo_loss

__all__ = ["TokenLosses", "linear_cross_entropy", "linear_grpo_loss", "linear_token_losses", "token_logprobs"]

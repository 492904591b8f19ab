"""Losses; one idea a file."""

from .chunked_head import linear_cross_entropy, token_logprobs
from .grpo import linear_grpo_loss

__all__ = ["linear_cross_entropy", "linear_grpo_loss", "token_logprobs"]

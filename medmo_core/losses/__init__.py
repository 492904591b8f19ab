"""Losses; one idea a file."""

from .chunked_head import linear_cross_entropy, token_logprobs

__all__ = ["linear_cross_entropy", "token_logprobs"]

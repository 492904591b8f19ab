"""Ahead-of-time compilation of every shipped Triton kernel, with no GPU, held to its gate."""

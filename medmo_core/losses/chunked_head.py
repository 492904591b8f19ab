"""Cross-entropy and log-probabilities of chosen tokens without the full table of logits.

On CUDA Liger's fused head computes the cross-entropy, where it is installed. Everywhere else, and for the
log-probabilities, which Liger does not return, rows go in chunks whose logits are computed again in the backward pass.
`torch.nn.functional.linear_cross_entropy` (torch 2.13) is not used: it returns a bf16 loss for bf16 states (off by 0.1
at 700 rows x 30,000 tokens), took 3 to 6 times as long on the CPU, and torch 2.11 lacks it.

Shapes: L labelled rows, E hidden width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..modules.backend import uses_liger
from .liger import liger_cross_entropy

DENSE_LOGITS = 2**24
"""Up to so many logits at once (64 MiB in fp32) the plain form is the fastest; beyond it the rows go in chunks."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Score targets under softmax(hidden @ weight.T) without keeping all logits.

    On CUDA with Liger the forward pass computes the gradients: one backward pass per forward pass.

    Numerics: log-sum-exp in fp32 (float64 for float64); the result is fp32 (float64).

    Args:
        hidden: (L, E) states of the rows that are learned, already gathered.
        weight: (V, E) head.
        targets: (L,) int64 tokens.
        reduction: "mean" or "sum" over the rows.

    Returns:
        A scalar; 0 (with a graph) when there is no row.

    Raises:
        ValueError: `reduction` is neither of the two.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    if targets.numel() == 0:
        return hidden.sum() * 0.0
    if uses_liger(hidden):
        return liger_cross_entropy(hidden, weight, targets, reduction)
    if targets.numel() * weight.shape[0] <= DENSE_LOGITS:
        return F.cross_entropy(_wide(F.linear(hidden, weight)), targets, reduction=reduction)
    total = -token_logprobs(hidden, weight, targets).sum()
    return total / targets.numel() if reduction == "mean" else total


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Return each target's log-probability under softmax(hidden @ weight.T / temperature).

    Rows are processed in chunks, and a chunk's logits are computed again in the backward pass.

    Numerics: log-sum-exp in fp32 (float64 for float64).

    Args:
        hidden: (L, E).
        weight: (V, E) head.
        targets: (L,) int64 tokens.
        temperature: divides the logits.

    Returns:
        (L,) fp32 (float64 for float64 inputs).

    Raises:
        ValueError: the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    rows = max(1, DENSE_LOGITS // weight.shape[0])
    if targets.numel() <= rows:
        return _chunk_logprobs(hidden, weight, targets, temperature)
    pieces = [
        checkpoint(_chunk_logprobs, h, weight, t, temperature, use_reentrant=False)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(pieces)


def _chunk_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logits = _wide(F.linear(hidden, weight)) / temperature
    return -F.cross_entropy(logits, targets, reduction="none")


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()

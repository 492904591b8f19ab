"""Cross-entropy and log-probabilities of chosen tokens without the full table of logits.

On CUDA Liger's fused head computes the cross-entropy, where it is installed. Everywhere else, and for the
log-probabilities, which Liger does not return, rows go in chunks whose logits are computed again in the backward pass.
`torch.nn.functional.linear_cross_entropy` (torch 2.13) is not used: it returns a bf16 loss for bf16 states (off by 0.1
at 700 rows x 30,000 tokens), took 3 to 6 times as long on the CPU, and torch 2.11 lacks it.

Shapes: L labelled rows, E hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..modules.backend import uses_liger
from .liger import liger_token_losses

DENSE_LOGITS = 2**24
"""Up to so many logits at once (64 MiB in fp32) the plain form is the fastest; beyond it the rows go in chunks."""


class TokenLosses(NamedTuple):
    """The loss of a batch and what it is made of (a tuple, so that FSDP2 finds the tensor that has a graph).

    Attributes:
        total: scalar with a graph, what is minimised: the sum over the rows of cross-entropy and z-loss.
        cross_entropy: (L,) of each row, without a graph.
        z_loss: scalar without a graph, the z-loss's share of `total`.
        correct: (L,) whether the target is the most likely token; None where it was not asked for.
        attention: scalar without a graph, the share of `total` that supervises attention; None where nothing does.
    """

    total: Tensor
    cross_entropy: Tensor
    z_loss: Tensor
    correct: Tensor | None = None
    attention: Tensor | None = None


def linear_token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, z_loss: float = 0.0, accuracy: bool = False
) -> TokenLosses:
    """Score targets under softmax(hidden @ weight.T) without keeping all logits; one pass gives sum and rows.

    The z-loss of a row is `z_loss` times the square of its log-sum-exp, the log of the softmax's denominator.

    On CUDA with Liger the forward pass computes the gradients: one backward pass per forward pass.

    Numerics: log-sum-exp in fp32 (float64 for float64); the results are fp32 (float64).

    Args:
        hidden: (L, E) states of the rows that are learned, already gathered.
        weight: (V, E) head.
        targets: (L,) int64 tokens.
        z_loss: weight of the z-loss.
        accuracy: fill `correct`.

    Returns:
        The sum (0, with a graph, when there is no row) and its parts.

    Reference: Chowdhery et al., PaLM, arXiv 2204.02311, section 5 (z-loss).
    """
    if targets.numel() == 0:
        nothing = hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
        correct = torch.zeros_like(targets, dtype=torch.bool) if accuracy else None
        return TokenLosses(hidden.sum() * 0.0, nothing, nothing.sum(), correct)
    if uses_liger(hidden):
        return TokenLosses(*liger_token_losses(hidden, weight, targets, z_loss, accuracy))
    cross_entropy, squares, correct = [], [], []
    rows = max(1, DENSE_LOGITS // weight.shape[0])
    for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
        inputs = (h, weight, t, z_loss > 0, accuracy)
        whole = targets.numel() <= rows
        pieces = _chunk_losses(*inputs) if whole else checkpoint(_chunk_losses, *inputs, use_reentrant=False)
        for kept, piece in zip((cross_entropy, squares, correct), pieces, strict=True):
            kept.append(piece)
    losses = torch.cat(cross_entropy)
    term = z_loss * torch.cat(squares).sum() if z_loss > 0 else losses.new_zeros(())
    total = losses.sum() + term
    return TokenLosses(total, losses.detach(), term.detach(), torch.cat(correct) if accuracy else None)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the "mean" or "sum" of the rows' cross-entropy; see `linear_token_losses`.

    Raises:
        ValueError: `reduction` is neither of the two.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    total = linear_token_losses(hidden, weight, targets).total
    return total / max(1, targets.numel()) if reduction == "mean" else total


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Return each target's log-probability under softmax(hidden @ weight.T / temperature).

    Rows are processed in chunks, and a chunk's logits are computed again in the backward pass.

    Numerics: log-sum-exp in fp32 (float64 for float64).

    Args:
        hidden: (L, E).
        weight: (V, E) head.
        targets: (L,) int64 tokens.
        temperature: number that the logits are divided by.

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


def _chunk_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, squared: bool, accuracy: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return cross-entropy, squared log-sum-exp and correctness of some rows; the last two where they are wanted."""
    logits = _wide(F.linear(hidden, weight))
    correct = logits.argmax(-1) == targets if accuracy else None
    if not squared:
        return F.cross_entropy(logits, targets, reduction="none"), None, correct
    denominators = logits.logsumexp(-1)  # once for both
    return denominators - logits.gather(1, targets[:, None]).squeeze(1), denominators.square(), correct


def _chunk_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logits = _wide(F.linear(hidden, weight)) / temperature
    return -F.cross_entropy(logits, targets, reduction="none")


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()

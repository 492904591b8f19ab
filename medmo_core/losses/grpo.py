"""The clipped policy-gradient loss of packed completions, from hidden states, without the full table of logits.

Shapes: L completion tokens, E hidden width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..modules.backend import uses_liger
from .chunked_head import token_logprobs
from .liger import liger_grpo_loss


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    token_weights: Tensor,
    old_logps: Tensor | None = None,
    ref_logps: Tensor | None = None,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    beta: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """Sum the clipped losses of sampled tokens under softmax(hidden @ weight.T / temperature), with their weights.

    The loss of a token is -min(ratio * advantage, clip(ratio) * advantage) + beta * (exp(d) - d - 1), with ratio =
    exp(logp - old), clip to [1 - epsilon_low, 1 + epsilon_high], and d = ref - logp. Token weights carry whatever
    denominators a form of the loss has (tokens of the step, completions times their length, a constant).

    Numerics: log-sum-exp and the loss in fp32 (float64 for float64).

    Args:
        hidden: (L, E) states of the rows whose next token was sampled, already gathered.
        weight: (V, E) head.
        targets: (L,) int64 sampled tokens.
        advantages: (L,), each token that of its completion.
        token_weights: (L,).
        old_logps: (L,) under the policy that sampled; None: that policy is this one, and every ratio is 1.
        ref_logps: (L,) under the starting policy; None: no KL term.
        epsilon_low: clip below.
        epsilon_high: clip above.
        beta: factor of the KL term.
        temperature: divides the logits.

    Returns:
        A scalar; 0 (with a graph) when there is no row.

    Raises:
        ValueError: the temperature is not positive, or the rows are not as many everywhere.

    Reference: Shao et al., arXiv 2402.03300, eq. 3 and 4; Yu et al., DAPO, arXiv 2503.14476 (two clip widths).
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    for name, values in (("advantages", advantages), ("token_weights", token_weights), ("old_logps", old_logps),
                         ("ref_logps", ref_logps)):  # fmt: skip
        if values is not None and values.shape != targets.shape:
            raise ValueError(f"{name} {tuple(values.shape)} and targets {tuple(targets.shape)} differ")
    if targets.numel() == 0:
        return hidden.sum() * 0.0
    if uses_liger(hidden):
        return liger_grpo_loss(
            hidden, weight, targets, advantages, token_weights, old_logps, ref_logps,
            epsilon_low=epsilon_low, epsilon_high=epsilon_high, beta=beta, temperature=temperature,
        )  # fmt: skip
    logps = token_logprobs(hidden, weight, targets, temperature)
    ratio = (logps - (logps.detach() if old_logps is None else old_logps.to(logps.dtype))).exp()
    clipped = ratio.clamp(1.0 - epsilon_low, 1.0 + epsilon_high)
    factors = advantages.to(logps.dtype)
    per_token = -torch.minimum(ratio * factors, clipped * factors)
    if ref_logps is not None:
        away = ref_logps.to(logps.dtype) - logps
        per_token = per_token + beta * (away.exp() - away - 1.0)
    return (per_token * token_weights.to(logps.dtype)).sum()

"""Policy-gradient losses of packed completions, from hidden states, without the full table of logits.

All variants are one sum over tokens, so micro-batches and processes only add up. What they divide by stands in the
token weights:

| loss | of a token, with r = exp(logp - old) and A its completion's advantage | usual token weight |
|---|---|---|
| grpo | -min(r A, clip(r) A) | 1 / (completions x tokens of the completion) |
| dapo | the same | 1 / tokens of the step |
| dr_grpo | the same | 1 / (completions x longest completion) |
| gspo | the same with the completion's r: exp of the mean of its logp - old | as grpo |
| cispo | -min(r, 1 + epsilon_high) A logp, the factor before A held fixed | as dapo |

Shapes: L completion tokens, n documents, E hidden width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..choices import Importance
from ..modules.backend import uses_liger
from .chunked_head import token_logprobs
from .liger import liger_logprob_loss
from .policy_objective import DAPO, PolicyObjective


class PolicyLoss(NamedTuple):
    """The loss of sampled tokens and what it is made of (a tuple, so that FSDP2 finds the tensor that has a graph).

    Attributes:
        total: scalar with a graph, what is minimised.
        logps: (L,) of the policy, without a graph; the `old_logps` of later updates on the same tokens.
        clipped: (L,) bool, whether the token's ratio was clipped, so that its policy term has no gradient (in cispo:
            whether its factor was lowered).
        kl: (L,) estimated divergence from the starting policy, without its factor; zeros without a reference.
        importance: (L,) factor of the policy term for what the sampler did otherwise than the trainer; ones where off.
    """

    total: Tensor
    logps: Tensor
    clipped: Tensor
    kl: Tensor
    importance: Tensor


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    token_weights: Tensor,
    old_logps: Tensor | None = None,
    ref_logps: Tensor | None = None,
    sampled_logps: Tensor | None = None,
    documents: Tensor | None = None,
    *,
    objective: PolicyObjective = DAPO,
    temperature: float = 1.0,
) -> PolicyLoss:
    """Sum the losses of sampled tokens under softmax(hidden @ weight.T / temperature), with their weights.

    See the head of this file for the losses, `importance_weights` for the factor before them; objective.beta *
    (exp(d) - d - 1) with d = ref - logp is added to every token.

    On CUDA Liger's fused linear GRPO function computes log-probabilities and gradients in one pass, whatever the loss,
    and keeps no logits: one backward pass per forward pass.

    Numerics: log-sum-exp and the loss in fp32 (float64 for float64).

    Args:
        hidden: (L, E) states of the rows whose next token was sampled, already gathered.
        weight: (V, E) head.
        targets: (L,) int64 sampled tokens.
        advantages: (L,), each token that of its completion.
        token_weights: (L,) factor of each token, the denominators; a token of weight 0 takes part in nothing.
        old_logps: (L,) under the policy that sampled, as the trainer computes them; None: that policy is this one, and
            every ratio is 1.
        ref_logps: (L,) under the starting policy; None: no KL term.
        sampled_logps: (L,) as the sampler computed them; needed by `objective.importance`.
        documents: (L,) int64, the completion of every token, each in one run; needed by gspo and by importance of
            whole sequences.
        objective: kind of loss and its settings.
        temperature: divisor of the logits.

    Returns:
        The sum (0, with a graph, when there is no row) and its parts.

    Raises:
        ValueError: the temperature is not positive, the rows are not as many everywhere, or something is missing.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    given = {"advantages": advantages, "token_weights": token_weights, "old_logps": old_logps, "ref_logps": ref_logps,
             "sampled_logps": sampled_logps, "documents": documents}  # fmt: skip
    for name, values in given.items():
        if values is not None and values.shape != targets.shape:
            raise ValueError(f"{name} {tuple(values.shape)} and targets {tuple(targets.shape)} differ")
    loss, importance = objective.loss, objective.importance
    if sampled_logps is None and importance != "none":
        raise ValueError(f"importance={importance!r} needs sampled_logps")
    if documents is None and (loss == "gspo" or importance.startswith("sequence")):
        raise ValueError(f"loss={loss!r} with importance={importance!r} needs documents, the completion of every token")
    of_logps = partial(policy_loss, objective=objective, **given)
    if targets.numel() and uses_liger(hidden):
        return PolicyLoss(*liger_logprob_loss(hidden, weight, targets, of_logps, temperature))
    return of_logps(token_logprobs(hidden, weight, targets, temperature))


def policy_loss(
    logps: Tensor,
    *,
    advantages: Tensor,
    token_weights: Tensor,
    old_logps: Tensor | None = None,
    ref_logps: Tensor | None = None,
    sampled_logps: Tensor | None = None,
    documents: Tensor | None = None,
    objective: PolicyObjective = DAPO,
) -> PolicyLoss:
    """Compute `linear_grpo_loss` from the (L,) log-probabilities of the tokens.

    Reference: Shao et al., GRPO, arXiv 2402.03300, eq. 3 and 4 (the loss, and the KL term); Yu et al., DAPO, arXiv
        2503.14476 (two clip widths, mean over tokens); Liu et al., Dr. GRPO, arXiv 2503.20783; Zheng et al., GSPO,
        arXiv 2507.18071, eq. 5 to 7; MiniMax, CISPO, arXiv 2506.13585, eq. 4 and 5 (with its "no lower bound").
    """
    dtype = logps.dtype
    counted = token_weights > 0
    factors = advantages.to(dtype)
    now = logps.detach()
    old = now if old_logps is None else old_logps.to(dtype)
    weights = torch.ones_like(now)
    if objective.importance != "none":
        assert sampled_logps is not None
        kind, cap = objective.importance, objective.importance_cap
        weights = importance_weights(old, sampled_logps.to(dtype), counted, documents, kind, cap)
    away = logps - old
    if objective.loss == "gspo":
        assert documents is not None
        lengths = _sequence_sum(counted.to(dtype), documents).clamp(min=1.0)
        away = _sequence_sum(torch.where(counted, away, 0.0), documents) / lengths
    ratio = away.exp()
    high = 1.0 + objective.epsilon_high
    if objective.loss == "cispo":
        clipped = ratio > high
        per_token = -ratio.detach().clamp(max=high) * factors * logps
    else:
        bounded = ratio.clamp(1.0 - objective.epsilon_low, high) * factors
        clipped = bounded < ratio * factors
        per_token = -torch.minimum(ratio * factors, bounded)
    per_token = per_token * weights
    kl = torch.zeros_like(logps)
    if ref_logps is not None:
        back = ref_logps.to(dtype) - logps
        kl = back.exp() - back - 1.0
        per_token = per_token + objective.beta * kl
    total = (per_token * token_weights.to(dtype)).sum()
    return PolicyLoss(total, now, clipped & counted, kl.detach(), weights)


@torch.no_grad()
def importance_weights(
    logps: Tensor,
    sampled_logps: Tensor,
    counted: Tensor,
    documents: Tensor | None,
    kind: Importance,
    cap: float,
) -> Tensor:
    """Weigh sampled tokens by the trainer's probability over the sampler's.

    A weight belongs to a token, or to a completion: the product of those of its tokens ("sequence"). One above the cap
    is lowered to it ("truncate") or becomes 0 ("mask"); small weights stay. That is TRL's correction with its upper
    bound alone. The divisor of the loss does not change where tokens are masked.

    Args:
        logps: (L,) under the policy that sampled, as the trainer computes them.
        sampled_logps: (L,) as the sampler did; may be NaN or infinite where `counted` is off.
        counted: (L,) bool, tokens that take part.
        documents: (L,) int64, the completion of every token; needed by "sequence".
        kind: correction to make, not "none".
        cap: largest weight.

    Returns:
        (L,); 1 where a token does not take part.

    Reference: Yao et al., Your efficient RL framework secretly brings you off-policy RL training, 2025 (truncated);
        Liu et al., When speed kills stability, 2025 (sequences, masks).
    """
    away = torch.where(counted, logps - sampled_logps, 0.0)
    if kind.startswith("sequence"):
        assert documents is not None
        away = torch.where(counted, _sequence_sum(away, documents), 0.0)
    weights = away.exp()
    return weights.clamp(max=cap) if kind.endswith("truncate") else weights.masked_fill(weights > cap, 0.0)


def _sequence_sum(values: Tensor, documents: Tensor) -> Tensor:
    """Return to every token the sum over its document, whose tokens stand side by side."""
    place = documents.ne(documents.roll(1)).cumsum(0)  # from 0 or 1 on, and without asking the device for a count
    return values.new_zeros(len(values) + 1).index_add(0, place, values)[place]

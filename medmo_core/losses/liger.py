"""Liger's fused heads behind the signatures of this package; the one file here that imports liger_kernel.

`medmo_core.modules.backend` says when they serve. They need packed rows that are already gathered: Liger computes the
logits of ignored rows too.

Shapes: L rows, E hidden width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100


def liger_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Score targets under softmax(hidden @ weight.T) with Liger's fused linear cross-entropy.

    The forward pass computes the gradients too, chunk by chunk, and keeps nothing else. The backward pass scales them
    in place: one backward pass per forward pass. One synchronisation counts the rows.

    Numerics: logits in the dtype of `hidden`, log-sum-exp in fp32; the head's gradient is summed over chunks in fp32
        (Liger's default is the dtype of the weight). Returns fp32.

    Args:
        hidden: (L, E), L at least 1.
        weight: (V, E) head.
        targets: (L,) int64 tokens.
        reduction: "mean" or "sum".

    Raises:
        ModuleNotFoundError: liger-kernel is not installed; names the extra.
    """
    try:
        from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Liger\'s losses need liger-kernel: pip install "medmo[cuda]"') from error

    if weight.requires_grad and not hidden.requires_grad and torch.is_grad_enabled():
        hidden = hidden.detach().requires_grad_()  # Liger computes no gradient at all for states that need none
    no_bias = no_class_weights = no_softcap = None
    no_z_loss, no_smoothing = 0.0, 0.0
    loss, *_ = LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, targets, no_bias, no_class_weights, IGNORED, no_z_loss, no_smoothing, reduction, no_softcap,
        False, torch.float32,
    )  # fmt: skip
    return loss


def liger_grpo_loss(
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
    """Compute `linear_grpo_loss` with Liger's fused linear GRPO loss.

    Liger takes padded rows (B, T), one advantage per row, and a mask with which it multiplies each token's loss before
    it sums. Packed tokens are given as B = L rows of T = 1 token: then the advantage is per token, the mask is the
    token's weight (any number, not only 0 and 1), and no padding is computed. Its "dr_grpo" form divides the sum by
    B * max_completion_length = L, whatever the weights, which is multiplied away. So every term is the one of
    `linear_grpo_loss`. What Liger could not express this way are ratios over whole sequences (GSPO) and its own
    averages over sequences, for which a row must be a completion; token weights carry those averages here. Its clip and
    KL figures count masked tokens as whole ones and are not returned.

    Numerics: logits in the dtype of `hidden` and in blocks of 2,048 rows x 4,096 tokens, all else in fp32. All rows go
        in one chunk: between chunks Liger sums the head's gradient in the dtype of the weight.

    Args:
        hidden, weight, targets, advantages, token_weights, old_logps, ref_logps: as `linear_grpo_loss`; L at least 1.
        epsilon_low, epsilon_high, beta, temperature: as `linear_grpo_loss`.

    Raises:
        ModuleNotFoundError: liger-kernel is not installed; names the extra.
    """
    try:
        from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOLoss
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Liger\'s losses need liger-kernel: pip install "medmo[cuda]"') from error

    num_rows = targets.numel()
    loss_of = LigerFusedLinearGRPOLoss(
        beta=0.0 if ref_logps is None else beta,
        compiled=False,  # no compiler inside a training step: the rest of it is a few products of L numbers
        use_ref_model=ref_logps is not None,
        chunk_size=num_rows,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        loss_type="dr_grpo",
        max_completion_length=1,
        temperature=temperature,
    )

    def column(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.detach().float().unsqueeze(1)

    loss, _ = loss_of(
        hidden.unsqueeze(1),
        weight,
        targets.unsqueeze(1),
        column(token_weights),
        advantages.detach().float(),
        ref_per_token_logps=column(ref_logps),
        old_per_token_logps=column(old_logps),
    )
    return loss * num_rows

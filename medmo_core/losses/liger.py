"""Liger's fused heads behind the signatures of this package; the one file here that imports liger_kernel.

`medmo_core.modules.backend` says when they serve. They need packed rows that are already gathered: Liger computes the
logits of ignored rows too.

Shapes: L rows, E hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def liger_token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0, accuracy: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute `linear_token_losses` with Liger's fused linear cross-entropy, in one pass.

    The forward pass computes the gradients too, chunk by chunk, and keeps nothing else. The backward pass scales them
    in place: one backward pass per forward pass. One synchronisation counts the rows. Liger's own autograd function
    returns either the rows and computes all logits twice, or their sum alone; here its kernels give the rows, and the
    gradients of their plain sum.

    Numerics: logits in the dtype of `hidden`, log-sum-exp in fp32; the head's gradient is summed over chunks in fp32
        (Liger's default is the dtype of the weight). Returns fp32; each row's z-loss is rounded once to the dtype of
        `hidden` where it is told apart from the cross-entropy, not in the sum.

    Args:
        hidden, weight, targets, z_loss, accuracy: as `linear_token_losses`; L at least 1.

    Raises:
        ModuleNotFoundError: liger-kernel is not installed; names the extra.
    """
    try:
        from liger_kernel.ops import fused_linear_cross_entropy as kernels
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Liger\'s losses need liger-kernel: pip install "medmo[cuda]"') from error

    if weight.requires_grad and not hidden.requires_grad and torch.is_grad_enabled():
        hidden = hidden.detach().requires_grad_()  # Liger computes no gradient at all for states that need none
    return _FusedHead.apply(kernels, hidden, weight, targets, z_loss, accuracy)


class _FusedHead(torch.autograd.Function):
    """Liger's fused linear cross-entropy: the sum, its rows, and the sum's gradients from one pass."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, accuracy: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        rows, z_rows, correct, *_, grad_hidden, grad_weight, _ = kernels.fused_linear_cross_entropy_forward(
            hidden,
            weight,
            targets,
            lse_square_scale=z_loss,
            reduction="none",
            return_z_loss=z_loss > 0,
            accum_dtype=torch.float32,
            return_token_accuracy=accuracy,
        )
        ctx.kernels = kernels
        ctx.save_for_backward(grad_hidden, grad_weight)
        total = rows.sum()
        z_rows = torch.zeros_like(rows) if z_rows is None else z_rows.float()
        cross_entropy, z_total = rows - z_rows, z_rows.sum()
        correct = None if correct is None else correct > 0
        ctx.mark_non_differentiable(*(t for t in (cross_entropy, z_total, correct) if t is not None))
        return total, cross_entropy, z_total, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        scaled = ctx.kernels.fused_linear_cross_entropy_backward(gradients[0], *ctx.saved_tensors, None)
        return None, *scaled[:2], None, None, None


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

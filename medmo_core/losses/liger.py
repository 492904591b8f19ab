"""Liger's fused heads behind the signatures of this package; the one file here that imports liger_kernel.

`medmo_core.modules.backend` says when they serve. They need packed rows that are already gathered: Liger computes the
logits of ignored rows too.

Shapes: L rows, E hidden width, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..optional import import_optional


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
        `hidden` where it is separated from the cross-entropy, not in the sum.

    Args:
        hidden, weight, targets, z_loss, accuracy: arguments of `linear_token_losses`; L at least 1.

    Raises:
        ModuleNotFoundError: liger-kernel is not installed; names the extra.
    """
    kernels = import_optional("liger_kernel.ops", "cuda", "Liger's cross-entropy").fused_linear_cross_entropy
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


Objective = Callable[[Tensor], tuple[Tensor, ...]]
"""(L,) log-probabilities with a graph -> a scalar, and tensors of L values to hand on."""


def liger_logprob_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, objective: Objective, temperature: float
) -> tuple[Tensor, ...]:
    """Compute a loss of the targets' log-probabilities with Liger's fused linear GRPO function.

    Liger's function computes log-probabilities block by block, calls its loss, and takes the gradients of hidden states
    and head before it returns; no logits are kept. Its own loss wants padded rows, one a completion, divides by its own
    averages (dapo's and cispo's with an exchange among processes inside the forward pass), and reports only means of
    the tokens. So its loss is replaced by `objective`, and packed tokens are given as L rows of one token: nothing is
    padded, and every loss is served, those over whole completions too. tests/core/losses/test_grpo_loss.py compares the
    results with Liger's own loss on padded rows.

    Numerics: logits in the dtype of `hidden` and in blocks of 2,048 rows x 4,096 tokens, all else in fp32. All rows go
        in one chunk: between chunks Liger sums the head's gradient in the dtype of the weight.

    Args:
        hidden, weight, targets, temperature: arguments of `linear_grpo_loss`; L at least 1.
        objective: function from log-probabilities to loss.

    Returns:
        What `objective` returns; the loss has a graph.

    Raises:
        ModuleNotFoundError: liger-kernel is not installed; names the extra.
    """
    num_rows = targets.numel()
    rows = torch.ones(num_rows, 1, device=hidden.device)
    given = {
        "_input": hidden.unsqueeze(1),
        "weight": weight,
        "selected_token_ids": targets.unsqueeze(1),
        "attention_mask": rows,
        "advantages": rows.squeeze(1),
        "loss_type": objective,
        "temperature": temperature,
        "compiled": False,  # no compiler inside a training step: the rest of it is a few products of L numbers
        "use_ref_model": False,
        "chunk_size": num_rows,
    }
    function, parameters = _fused_function()
    total, parts = function.apply(*(given.get(name, default) for name, default in parameters.items()))
    return total, *parts


@lru_cache(maxsize=1)
def _fused_function() -> tuple[Any, dict[str, Any]]:
    """Return Liger's function with the loss left open, and its arguments in order, with their defaults.

    `loss_type`, which it only hands on, is the loss.
    """
    module = import_optional("liger_kernel.chunked_loss.grpo_loss", "cuda", "Liger's policy loss")
    function = module.LigerFusedLinearGRPOFunction

    class FusedObjective(function):
        @staticmethod
        def ppo_loss_fn(per_token_logps: Tensor, **given: Any) -> tuple[Tensor, list[Tensor]]:
            total, *parts = given["loss_type"](per_token_logps.squeeze(1))
            return total, parts

    _, *parameters = inspect.signature(function.forward).parameters.values()  # the first is ctx
    return FusedObjective, {parameter.name: parameter.default for parameter in parameters}

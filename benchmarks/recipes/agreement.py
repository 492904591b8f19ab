"""Whether ways of training and of sampling agree, asked before they are timed."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.losses import TokenLosses
from medmo_core.models import MedMO
from medmo_recipes.settings.run_config import Optim
from medmo_recipes.training.optim.optimizer import Optimizer

from ..suite.schema import Check
from .documents import answered

BOUND = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Relative difference of losses and gradients by the narrower dtype of the two: bf16 rounds every activation."""
GREEDY_BOUND = {torch.float64: 1e-9, torch.float32: 0.01, torch.bfloat16: 0.2}
"""Share of greedy tokens that are not the most likely ones: where two are all but equal, rounding decides."""

Outcome = Mapping[str, Tensor]
"""Loss, and either every gradient by name or the norm of all."""


def gradient_norm(model: nn.Module) -> Tensor:
    """Return the norm of all gradients together."""
    return Optimizer(model, Optim(), steps=1).gradient_norm()


def outcome(model: nn.Module, step: Callable[[], Tensor], *, each: bool) -> Outcome:
    """Run a loss forward and backward.

    Args:
        model: its gradients are cleared before and after.
        step: function that runs the model and returns the loss.
        each: return every gradient, not their norm alone.
    """
    model.zero_grad()
    loss = step().detach().cpu()
    if each:
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        if len(gradients) != len(list(model.parameters())):
            raise ValueError("a parameter has no gradient")
    else:
        gradients = {"norm of all gradients": gradient_norm(model).cpu()}
    model.zero_grad()
    return {"loss": loss, **gradients}


def largest_difference(found: Outcome, truth: Outcome) -> float:
    """Return the largest relative difference of the loss or a gradient."""
    if found.keys() != truth.keys():
        raise ValueError(f"other gradients: {sorted(found.keys() ^ truth.keys())[:3]}")
    return max(float((found[name].double() - t.double()).norm() / t.double().norm()) for name, t in truth.items())


@torch.no_grad()
def plain_pass(model: MedMO, prompts: Sequence[Document], answers: Sequence[Sequence[Sequence[int]]]) -> TokenLosses:
    """Score answers by the forward pass of training, each beside its prompt in a separate row, for truth.

    Args:
        model: model in evaluation or training mode, which do the same.
        prompts: documents without labels.
        answers: tokens of the answers of each prompt.

    Returns:
        Of every token of the answers, in their order, minus its log-probability, and whether it was the most likely.
    """
    items = [item for prompt, group in zip(prompts, answers, strict=True) for item in answered(prompt, group)]
    return model.token_losses(pack(items).to(model.head_weight.device), accuracy=True)


def check_logps(scored: TokenLosses, logps: Sequence[float], dtype: torch.dtype) -> Check:
    """Compare the sampler's log-probabilities with the plain pass: the mean difference of a token."""
    error = (torch.tensor(logps, dtype=torch.float64) + scored.cross_entropy.cpu()).abs().mean()
    return Check("log-probabilities of a plain pass", float(error), BOUND[dtype])


def check_greedy(scored: TokenLosses, dtype: torch.dtype) -> Check:
    """Return the share of greedy tokens that the plain pass does not find the most likely ones."""
    assert scored.correct is not None
    return Check("most likely tokens of a plain pass", 1.0 - float(scored.correct.double().mean()), GREEDY_BOUND[dtype])

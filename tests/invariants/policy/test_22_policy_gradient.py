"""Invariant 22: at ratio 1 the gradient is -A/N (onehot - softmax), summed by hand; clipped tokens give exactly zero.

In logits, for every loss; and each loss off policy equals a reference written completion by completion.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from medmo_core.losses import PolicyLoss, PolicyObjective, policy_loss
from medmo_core.losses import grpo as grpo_module

LOSSES = ("grpo", "dapo", "dr_grpo", "gspo", "cispo")
LENGTHS = torch.tensor([3, 1, 4])
ADVANTAGES = torch.tensor([1.2, -0.8, -0.3], dtype=torch.float64)
DOCUMENTS = torch.arange(3).repeat_interleave(LENGTHS)
TARGETS = torch.tensor([0, 4, 2, 2, 1, 3, 3, 0])
WEIGHTS = {
    "grpo": 1 / (3 * LENGTHS.double()[DOCUMENTS]),
    "gspo": 1 / (3 * LENGTHS.double()[DOCUMENTS]),
    "dapo": torch.full((8,), 1 / 8, dtype=torch.float64),
    "cispo": torch.full((8,), 1 / 8, dtype=torch.float64),
    "dr_grpo": torch.full((8,), 1 / (3 * 6), dtype=torch.float64),
}


def logits() -> Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def of_tokens(table: Tensor) -> Tensor:
    return table.log_softmax(-1).gather(1, TARGETS[:, None]).squeeze(1)


def ours(loss: Any, logps: Tensor, old: Tensor | None = None) -> PolicyLoss:
    return grpo_module.policy_loss(
        logps, advantages=ADVANTAGES[DOCUMENTS], token_weights=WEIGHTS[loss], old_logps=old, documents=DOCUMENTS,
        objective=PolicyObjective(loss=loss, epsilon_low=0.1, epsilon_high=0.2),
    )  # fmt: skip


def assert_policy_gradient(loss: str) -> None:
    """On policy every loss is the policy gradient with its own denominators."""
    table = logits()
    ours(loss, of_tokens(table)).total.backward()
    by_hand = torch.zeros(8, 5, dtype=torch.float64)
    for t in range(8):
        softmax = table[t].detach().exp() / table[t].detach().exp().sum()
        onehot = torch.zeros(5, dtype=torch.float64)
        onehot[TARGETS[t]] = 1.0
        by_hand[t] = -ADVANTAGES[DOCUMENTS[t]] * WEIGHTS[loss][t] * (onehot - softmax)
    assert table.grad is not None
    torch.testing.assert_close(table.grad, by_hand, rtol=1e-10, atol=1e-14)


def assert_clipped_tokens_are_still(loss: str) -> None:
    """Ratios far outside, on the side that gains: no gradient at all; on the other side: full gradient."""
    for gains in (True, False):
        table = logits()
        side = ADVANTAGES[DOCUMENTS].sign() * (1 if gains else -1)
        policy = ours(loss, of_tokens(table), of_tokens(table).detach() - 0.6 * side)
        policy.total.backward()
        assert table.grad is not None
        if gains:
            assert policy.clipped.all() and not table.grad.any()
        else:
            assert not policy.clipped.any() and (table.grad.abs().sum(-1) > 0).all()


def reference(loss: str, logps: Tensor, old: Tensor) -> Tensor:
    """Completion by completion, from the papers."""
    terms = []
    for n, advantage in enumerate(ADVANTAGES.tolist()):
        new, before = logps[n == DOCUMENTS], old[n == DOCUMENTS]
        ratio = (new - before).mean().exp().expand(len(new)) if loss == "gspo" else (new - before).exp()
        bounded = ratio.clip(0.9, 1.2)
        if loss == "cispo":
            term = -(ratio.clip(max=1.2).detach() * advantage * new)
        else:
            term = -(torch.min(ratio, bounded) if advantage > 0 else torch.max(ratio, bounded)) * advantage
        share = {"dapo": 1 / 8, "cispo": 1 / 8, "dr_grpo": 1 / 18}.get(loss, 1 / (3 * len(new)))
        terms.append(term.sum() * share)
    return torch.stack(terms).sum()


def assert_equals_reference(loss: str) -> None:
    table = logits()
    old = of_tokens(table).detach() + torch.tensor([0.3, -0.4, 0.0, 0.2, -0.05, 0.4, -0.3, 0.08], dtype=torch.float64)
    total, expected = ours(loss, of_tokens(table), old).total, reference(loss, of_tokens(table), old)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-14)
    got, wanted = (torch.autograd.grad(value, table)[0] for value in (total, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_on_policy_is_the_policy_gradient(loss: str) -> None:
    assert_policy_gradient(loss)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_a_clipped_token_has_no_gradient(loss: str) -> None:
    assert_clipped_tokens_are_still(loss)


@pytest.mark.parametrize("loss", LOSSES)
def test_off_policy_equals_the_reference(loss: str) -> None:
    assert_equals_reference(loss)


def changed(given: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Return the arguments with other settings of the objective."""
    return {**given, "objective": replace(given["objective"], **settings)}


def double_advantage(logps: Tensor, **given: Any) -> PolicyLoss:
    return policy_loss(logps, **{**given, "advantages": 2 * ADVANTAGES[DOCUMENTS]})


def clip_after_the_minimum(logps: Tensor, **given: Any) -> PolicyLoss:
    """The ratio is never clipped."""
    return policy_loss(logps, **changed(given, epsilon_low=0.9, epsilon_high=9.0))


def tokens_for_sequences(logps: Tensor, **given: Any) -> PolicyLoss:
    """Ratios of tokens where those of completions are wanted."""
    return policy_loss(logps, **changed(given, loss="dapo"))


@pytest.mark.parametrize(
    ("wrong", "check", "loss"),
    [
        (double_advantage, assert_policy_gradient, "dapo"),
        (clip_after_the_minimum, assert_clipped_tokens_are_still, "grpo"),
        (tokens_for_sequences, assert_equals_reference, "gspo"),
        (tokens_for_sequences, assert_equals_reference, "cispo"),
    ],
)
def test_a_wrong_loss_is_noticed(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., PolicyLoss], check: Callable[[str], None], loss: str
) -> None:
    monkeypatch.setattr(grpo_module, "policy_loss", wrong)
    with pytest.raises(AssertionError):
        check(loss)

"""Invariant 27: weights for a sampler that is not the trainer have the values computed by hand.

Per token and per completion, truncated and masked. A token whose log-probability the sampler could not give learns
nothing, and the divisor is that of the others.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from medmo_core.generation.decoding import Generation
from medmo_core.losses import PolicyObjective, importance_weights, policy_loss
from medmo_core.losses import grpo as module
from medmo_recipes.reinforcement import completions as completions_module
from medmo_recipes.reinforcement.completions import pack_completions, to_completions
from medmo_recipes.reinforcement.groups import Group
from medmo_recipes.settings.run_config import Grpo, Rollout
from medmo_recipes.training.distributed.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
RATIOS = (1.5, 4.0, 0.2, 0.5, 2.0, 3.0)
"""Of trainer to sampler, for three completions of three, two and one token."""
DOCUMENTS = torch.tensor([0, 0, 0, 1, 1, 2])
CAP = 2.5
EXPECTED = {
    "token_truncate": [1.5, 2.5, 0.2, 0.5, 2.0, 2.5],
    "token_mask": [1.5, 0.0, 0.2, 0.5, 2.0, 0.0],
    "sequence_truncate": [1.2, 1.2, 1.2, 1.0, 1.0, 2.5],
    "sequence_mask": [1.2, 1.2, 1.2, 1.0, 1.0, 0.0],
}


def assert_weights(kind: Any) -> None:
    old = torch.linspace(-2.0, -0.5, 6, dtype=torch.float64)
    sampled = old - torch.tensor(RATIOS, dtype=torch.float64).log()
    counted = torch.ones(6, dtype=torch.bool)
    got = module.importance_weights(old, sampled, counted, DOCUMENTS, kind, CAP)
    assert got.tolist() == pytest.approx(EXPECTED[kind])
    # They multiply the policy term and nothing else, have no gradient, and leave the divisor alone.
    new = (old + 0.05).requires_grad_()
    given: dict[str, Any] = {
        "advantages": torch.tensor([1.0, 1.0, 1.0, -2.0, -2.0, 0.5], dtype=torch.float64),
        "token_weights": torch.full((6,), 1 / 6, dtype=torch.float64),
        "old_logps": old,
        "ref_logps": old - 0.3,
    }
    objective = PolicyObjective(beta=0.1, importance=kind, importance_cap=CAP)
    corrected = policy_loss(new, **given, sampled_logps=sampled, documents=DOCUMENTS, objective=objective)
    ratio, away = math.exp(0.05), -0.35
    terms = [-ratio * a * w for a, w in zip(given["advantages"].tolist(), EXPECTED[kind], strict=True)]
    assert corrected.total.item() == pytest.approx(sum(terms) / 6 + 0.1 * (math.exp(away) - away - 1))
    (gradient,) = torch.autograd.grad(corrected.total, new)
    expected = [(term + 0.1 * (1 - math.exp(away))) / 6 for term in terms]
    assert gradient.tolist() == pytest.approx(expected)
    assert torch.equal(corrected.importance, got)


@pytest.mark.parametrize("kind", EXPECTED)
def test_weights_have_their_values(kind: str) -> None:
    assert_weights(kind)


def capped_from_below(*arguments: Any) -> Tensor:
    return importance_weights(*arguments).clamp(min=1 / CAP)


def upside_down(logps: Tensor, sampled: Tensor, *others: Any) -> Tensor:
    return importance_weights(sampled, logps, *others)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        *((upside_down, kind) for kind in EXPECTED),
        (capped_from_below, "token_truncate"),
        (capped_from_below, "token_mask"),
    ],
)
def test_a_wrong_weight_is_noticed(monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Tensor], kind: str) -> None:
    monkeypatch.setattr(module, "importance_weights", wrong)
    with pytest.raises(AssertionError):
        assert_weights(kind)


def group(toy: Any, logps: list[list[float]]) -> Group:
    generations = [Generation([3 + i for i in range(len(row))], row, finished=False) for row in logps]
    advantages = torch.tensor([1.0, -0.5, 0.7][: len(logps)], dtype=torch.float64)
    prompt = toy.prompt("one", [(4, 4)])
    return Group("one#0", prompt, generations, [""] * len(logps), [None] * len(logps), {}, advantages, advantages)


def assert_unknown_tokens_count_for_nothing(toy: Any, loss: Any, kind: Any) -> None:
    """The step is the one in which those tokens are no targets: their weight is 0 and the others' sums are theirs."""
    unknown = [[-1.0, math.nan, -2.0, -0.5], [-math.inf, -1.5], [math.nan]]
    rollout, grpo = Rollout(num_generations=3, max_new_tokens=8), Grpo(loss=loss)
    completions = completions_module.to_completions([group(toy, unknown)], rollout, grpo, ALONE)
    batch = pack_completions(completions)
    known = batch.sampled_logps.isfinite()
    assert len(completions) == 2 and known.tolist() == [True, False, True, True, False, True]
    assert batch.token_weights[~known].tolist() == [0.0, 0.0]
    share = {"dapo": [1 / 4] * 4, "cispo": [1 / 4] * 4, "dr_grpo": [1 / 16] * 4}.get(loss, [1 / 6] * 3 + [1 / 2])
    assert batch.token_weights[known].tolist() == pytest.approx(share)

    model = toy.model()
    objective = PolicyObjective(loss=loss, importance=kind, importance_cap=1.3)
    given = (batch.batch, batch.advantages, batch.token_weights, None, None, batch.sampled_logps)
    policy = model.policy_loss(*given, objective=objective)
    assert policy.total.isfinite() and policy.importance[~known].tolist() in ([1.0, 1.0], [0.0, 0.0])
    policy.total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    # By hand: the sum over the known tokens alone.
    model.zero_grad()
    logps = model.token_logprobs(batch.batch)
    documents = torch.tensor([0, 0, 0, 0, 1, 1])[known]
    expected = policy_loss(
        logps[known], advantages=batch.advantages[known], token_weights=batch.token_weights[known],
        sampled_logps=batch.sampled_logps[known], documents=documents, objective=objective,
    )  # fmt: skip
    expected.total.backward()
    torch.testing.assert_close(policy.total, expected.total, rtol=1e-10, atol=1e-14)
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", ["none", "token_truncate", "sequence_truncate", "token_mask"])
@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "gspo", "cispo"])
def test_unknown_tokens_count_for_nothing(toy: Any, loss: str, kind: str) -> None:
    assert_unknown_tokens_count_for_nothing(toy, loss, kind)


def test_a_divisor_that_counts_them_is_noticed(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def counting_all(groups: list[Group], *others: Any) -> Any:
        finite = [
            Generation(g.tokens, [x if math.isfinite(x) else -1.0 for x in g.logps]) for g in groups[0].generations
        ]
        whole = to_completions([group(toy, [g.logps for g in finite])], *others)
        kept = [list(g.logps) for g in groups[0].generations]
        return [type(c)(c.document, c.advantage, c.token_weight, row) for c, row in zip(whole, kept, strict=True)][:2]

    monkeypatch.setattr(completions_module, "to_completions", counting_all)
    with pytest.raises(AssertionError):
        assert_unknown_tokens_count_for_nothing(toy, "dapo", "none")

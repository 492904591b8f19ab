"""Invariant 26: placeholders are never sampled, stop tokens are learned, cut answers go as grpo.mask_truncated says."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medmo_core.batch import IGNORE_INDEX
from medmo_core.data.packing import pack
from medmo_core.generation.sampling import Sampler
from medmo_core.models import Generation, MedMO
from medmo_recipes.reinforcement import completions as completions_module
from medmo_recipes.reinforcement.completions import join, pack_completions, to_completions
from medmo_recipes.reinforcement.engine import InPlaceEngine, Request
from medmo_recipes.reinforcement.groups import Group
from medmo_recipes.settings.run_config import Grpo, Rollout
from medmo_recipes.training.distributed.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
STOPS = tuple(range(8))
ROLLOUT = Rollout(num_generations=4, max_new_tokens=8, rows_per_pass=5)


def requests(toy: Any) -> list[Request]:
    prompts = [toy.prompt("one", [(4, 4)]), toy.prompt("words", text=9, seed=1)]
    return [Request(prompt.sample.id, prompt) for prompt in prompts]


class Ones(torch.nn.Module):
    """The same state for every token."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def wants_placeholders(toy: Any, strength: float) -> MedMO:
    """Return a model whose logits are near 0 everywhere, those of placeholders `strength`."""
    model = toy.model(tied=False)
    model.decoder.norm = Ones()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.1)
        model.lm_head.weight[list(model.config.placeholder_token_ids)] = strength / model.lm_head.in_features
    return model


def check_placeholders(model: MedMO, asked: Sequence[Request], rollout: Rollout) -> None:
    banned = set(model.config.placeholder_token_ids)
    groups = InPlaceEngine(model, STOPS).sample(asked, rollout, seed=0)
    tokens = {token for group in groups for generation in group for token in generation.tokens}
    assert len(tokens) > 5, "the others are sampled as their own probabilities say"
    assert not tokens & banned


@pytest.mark.parametrize("strength", [20.0, 5000.0], ids=["likely", "certain beyond rounding"])
@pytest.mark.parametrize("settings", [{}, {"top_k": 9}, {"top_p": 0.5}], ids=str)
def test_placeholders_are_never_sampled(toy: Any, strength: float, settings: dict[str, Any]) -> None:
    model, asked = wants_placeholders(toy, strength), requests(toy)
    likeliest = model(pack([request.prompt for request in asked])).argmax(-1)
    assert set(likeliest.tolist()) <= set(model.config.placeholder_token_ids)
    check_placeholders(model, asked, replace(ROLLOUT, **settings))


def test_a_sampler_without_the_ban_is_noticed(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Sampler.__init__
    monkeypatch.setattr(Sampler, "__init__", lambda self, head, sampling, banned: plain(self, head, sampling, [0]))
    model, asked = wants_placeholders(toy, 20.0), requests(toy)
    with pytest.raises(AssertionError):
        check_placeholders(model, asked, ROLLOUT)


def groups_of(toy: Any) -> list[Group]:
    """Return sampled groups with finished and cut answers, all with an advantage."""
    asked = requests(toy)
    sampled = InPlaceEngine(toy.model(), STOPS).sample(asked, ROLLOUT, seed=2)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=torch.float64)
    groups = [
        Group(r.name, r.prompt, g, [""] * 4, [None] * 4, {}, advantages, advantages)
        for r, g in zip(asked, sampled, strict=True)
    ]
    ends = [generation.finished for group in groups for generation in group.generations]
    assert any(ends) and not all(ends)
    return groups


def chosen(generation: Generation) -> list[int]:
    """Return what the model chose, one token for each log-probability."""
    end = [] if generation.stop_token is None else [generation.stop_token]
    assert (generation.stop_token in STOPS) == generation.finished
    assert len(generation.logps) == len(generation.tokens) + len(end)
    return generation.tokens + end


def check_learned(groups: Sequence[Group], *, mask_truncated: bool, configured: bool | None = None) -> None:
    """Check labels and weights: of every token with its stop token, or of the finished answers alone.

    Args:
        groups: sampled groups.
        mask_truncated: expected setting.
        configured: setting of the recipe; None: the same as expected.
    """
    grpo = Grpo(mask_truncated=mask_truncated if configured is None else configured)
    completions = to_completions(groups, ROLLOUT, grpo, ALONE)
    kept = [g for group in groups for g in group.generations if g.finished or not mask_truncated]
    batch = pack_completions(completions)
    assert batch.batch.labels is not None
    learned = batch.batch.labels[batch.batch.labels != IGNORE_INDEX].tolist()
    assert learned == [token for generation in kept for token in chosen(generation)]
    assert batch.sampled_logps.tolist() == [logp for generation in kept for logp in generation.logps]
    assert batch.token_weights.tolist() == pytest.approx([1 / len(learned)] * len(learned)), "cut ones count nowhere"


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_stop_tokens_are_learned_and_cut_answers_go_by_the_setting(toy: Any, mask_truncated: bool) -> None:
    check_learned(groups_of(toy), mask_truncated=mask_truncated)


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_cut_answers_that_go_otherwise_than_set_is_noticed(toy: Any, mask_truncated: bool) -> None:
    groups = groups_of(toy)
    with pytest.raises(AssertionError):
        check_learned(groups, mask_truncated=mask_truncated, configured=not mask_truncated)


def test_stop_tokens_left_out_is_noticed(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions_module, "sampled_tokens", lambda generation: generation.tokens)
    groups = groups_of(toy)
    with pytest.raises((AssertionError, RuntimeError)):
        check_learned(groups, mask_truncated=False)


def test_stop_tokens_without_a_label_is_noticed(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a mask of special tokens is laid over the labels."""

    def masked(prompt: Any, tokens: Sequence[int]) -> Any:
        item = join(prompt, tokens)
        assert item.labels is not None
        return replace(item, labels=np.where(np.isin(item.labels, STOPS), IGNORE_INDEX, item.labels))

    monkeypatch.setattr(completions_module, "join", masked)
    groups = groups_of(toy)
    with pytest.raises(AssertionError):
        check_learned(groups, mask_truncated=False)

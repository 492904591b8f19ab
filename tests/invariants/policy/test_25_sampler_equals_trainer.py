"""Invariant 25: the log-probabilities that the sampler returns are the trainer's for the same tokens.

Prompts of mixed lengths with and without images, rows refilled, temperature divided, shared prompts in training. Stale
weights, stale image features and a truncated distribution must not pass unnoticed.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.generation.sampling import Sampler
from medmo_core.models import MedMO
from medmo_recipes.reinforcement.completions import join
from medmo_recipes.reinforcement.engine import InPlaceEngine, Request
from medmo_recipes.reinforcement.groups import sampled_tokens
from medmo_recipes.settings.run_config import ConfigError, Rollout, RunConfig

STOPS = tuple(range(8))
ROLLOUT = Rollout(num_generations=3, max_new_tokens=12, temperature=0.7, rows_per_pass=4)


def requests(toy: Any) -> list[Request]:
    prompts = [
        toy.prompt("one", [(4, 6)]),
        toy.prompt("two", [(4, 4), (2, 6)], text=3, seed=1),
        toy.prompt("words", text=11, seed=2),
        toy.prompt("three", [(6, 6)], text=8, seed=3),
    ]
    return [Request(f"{prompt.sample.id}#{number}", prompt) for number, prompt in enumerate(prompts)]


def gaps(sampling: MedMO, training: MedMO, asked: Sequence[Request], rollout: Rollout = ROLLOUT) -> Tensor:
    """Return sampler's less trainer's log-probability of every token of freshly sampled completions."""
    groups = InPlaceEngine(sampling, STOPS).sample(asked, rollout, seed=5)
    items, sampled, finished = [], [], 0
    for request, group in zip(asked, groups, strict=True):
        prompt = replace(request.prompt, features=None)  # training looks at the pixels
        items += [join(prompt, sampled_tokens(generation)) for generation in group]
        sampled += [logp for generation in group for logp in generation.logps]
        finished += sum(generation.finished for generation in group)
    assert 0 < finished < len(items), "some must end early, and some must not"
    with torch.no_grad():
        trained = training.token_logprobs(pack(items, share_prefixes=True), rollout.temperature)
    return torch.tensor(sampled, dtype=torch.float64) - trained.double()


def check(sampling: MedMO, training: MedMO, asked: Sequence[Request], rollout: Rollout = ROLLOUT) -> None:
    found = gaps(sampling, training, asked, rollout).abs()
    assert len(found) > 60
    assert found.max() < 1e-6


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("rows_per_pass", [4, 64], ids=["refilled", "all at once"])
def test_log_probabilities_agree(toy: Any, temperature: float, rows_per_pass: int) -> None:
    model = toy.model()
    rollout = replace(ROLLOUT, temperature=temperature, rows_per_pass=rows_per_pass)
    check(model, model, requests(toy), rollout)


def test_they_agree_in_single_precision(toy: Any) -> None:
    model = toy.model().float()
    found = gaps(model, model, requests(toy)).abs()
    assert found.max() < 1e-4 and found.mean() < 1e-5


def test_truncated_sampling_returns_the_whole_distributions(toy: Any) -> None:
    """So does the trainer, and neither is what top-k and top-p drew from: no run may learn from that."""
    model = toy.model()
    check(model, model, requests(toy), replace(ROLLOUT, top_p=0.9, top_k=20))
    config = RunConfig(stage="align").change(stage="reinforce", rewards={"weights": {"box": 1.0}})
    for name, value in (("top_p", 0.9), ("top_k", 20)):
        with pytest.raises(ConfigError, match=f"rollout.{name} = {value}: expected .* no truncated distribution"):
            config.change(rollout={name: value})


def with_features(model: MedMO, asked: Sequence[Request]) -> list[Request]:
    """Return the requests with the features that a model sees in their images."""

    def seen(item: Document) -> Document:
        with torch.no_grad():
            return replace(item, features=model.encode_images(pack([item]))) if item.patches else item

    return [replace(request, prompt=seen(request.prompt)) for request in asked]


def test_fresh_features_stand_for_the_images(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy.model()
    asked = with_features(model, requests(toy))
    training = copy.deepcopy(model)
    monkeypatch.setattr(model.model.visual, "forward", lambda *_: pytest.fail("the images were encoded again"))
    check(model, training, asked)


def step(model: MedMO, part: str) -> None:
    """Move the weights of a part a little, as a training step does."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter += 1e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))


def test_a_sampler_in_place_sees_a_training_step(toy: Any) -> None:
    """Also when it was made and used before."""
    model, asked = toy.model(), requests(toy)
    engine = InPlaceEngine(model, STOPS)
    before = engine.sample(asked, ROLLOUT, seed=5)
    step(model, "")
    after = engine.sample(asked, ROLLOUT, seed=5)
    assert after != before
    assert after == InPlaceEngine(copy.deepcopy(model), STOPS).sample(asked, ROLLOUT, seed=5)
    check(model, model, asked)


@pytest.mark.parametrize("part", ["embed_tokens", "layers.1", "visual"])
def test_stale_weights_are_noticed(toy: Any, part: str) -> None:
    model, asked = toy.model(), requests(toy)
    copied = copy.deepcopy(model)
    check(copied, model, asked)
    step(model, part)
    with pytest.raises(AssertionError):
        check(copied, model, asked)


def test_stale_image_features_are_noticed(toy: Any) -> None:
    model = toy.model()
    asked = with_features(model, requests(toy))
    check(model, model, asked)
    step(model, "visual")
    with pytest.raises(AssertionError):
        check(model, model, asked)


def test_another_convention_is_noticed(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities of what is left after the ban, which differ wherever placeholders have some probability."""
    plain = Sampler.__call__

    def renormalised(self: Sampler, hidden: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
        tokens, logps = plain(self, hidden, uniform)
        every = (hidden @ self.weight.T / self.temperature).log_softmax(-1)
        return tokens, logps - torch.log1p(-every[:, self.banned].exp().sum(-1))

    monkeypatch.setattr(Sampler, "__call__", renormalised)
    with pytest.raises(AssertionError):
        check(toy.model(), toy.model(), requests(toy))

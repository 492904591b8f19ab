"""Invariant 24: with one update per batch the policy's own detached log-probabilities are the old ones.

So the pass that would compute them is skipped: loss, gradient and log-probabilities are the same with it. Without a KL
term (grpo.beta=0) no reference model is built; with one the reference is the policy that the run began with.
"""

from typing import Any

import pytest
import torch

from medmo_core.losses import PolicyObjective
from medmo_core.models.medmo import MedMO
from medmo_recipes.configs import CONFIGS
from medmo_recipes.reinforcement import reference_policy as module
from medmo_recipes.reinforcement.completions import Completion, PolicyBatch, pack_completions
from medmo_recipes.reinforcement.reference_policy import make_reference
from medmo_recipes.training.distributed.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
TEMPERATURE = 0.7


def packed(toy: Any) -> PolicyBatch:
    items = [toy.extend(toy.prompt("one", [(4, 6)]), 0, length, seed=length) for length in (3, 1, 5)]
    items += [toy.extend(toy.prompt("two", text=6), 0, length, seed=length) for length in (2, 4)]
    lengths = (3, 1, 5, 2, 4)
    return pack_completions(
        [Completion(item, 0.5 - i, 1 / 15, [-2.0] * n) for i, (item, n) in enumerate(zip(items, lengths, strict=True))]
    )


def gradients(model: MedMO, batch: PolicyBatch, loss: Any, old: torch.Tensor | None) -> dict[str, torch.Tensor]:
    model.zero_grad()
    given = (batch.batch, batch.advantages, batch.token_weights, old, batch.sampled_logps)
    policy = model.policy_loss(*given, objective=PolicyObjective(loss=loss, beta=0.1), temperature=TEMPERATURE)
    policy.total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": policy.total.detach(), "logps": policy.logps, **found}


def assert_old_pass_is_not_needed(model: MedMO, batch: PolicyBatch, loss: str) -> None:
    with torch.no_grad():
        old = model.token_logprobs(batch.batch, TEMPERATURE)
    skipped, made = gradients(model, batch, loss, None), gradients(model, batch, loss, old)
    assert torch.equal(skipped["logps"], old)
    assert len(made) > 10
    torch.testing.assert_close(skipped, made, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "gspo", "cispo"])
def test_the_pass_for_old_probabilities_is_not_needed(toy: Any, loss: str) -> None:
    assert_old_pass_is_not_needed(toy.model(), packed(toy), loss)


def test_other_old_probabilities_are_noticed(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that lags by one update of the weights, or another temperature."""
    model, batch = toy.model(), packed(toy)
    original = MedMO.token_logprobs
    monkeypatch.setattr(MedMO, "token_logprobs", lambda self, batch, temperature: original(self, batch, 1.0))
    with pytest.raises(AssertionError):
        assert_old_pass_is_not_needed(model, batch, "dapo")

    def lagging(self: MedMO, batch: Any, temperature: float) -> torch.Tensor:
        logps = original(self, batch, temperature)
        with torch.no_grad():
            self.decoder.norm.weight.mul_(1.01)
        return logps

    monkeypatch.setattr(MedMO, "token_logprobs", lagging)
    with pytest.raises(AssertionError):
        assert_old_pass_is_not_needed(model, batch, "dapo")


def assert_reference_is_the_start(model: MedMO, batch: PolicyBatch, beta: float) -> None:
    config = CONFIGS["debug_reinforce"]().change(grpo={"beta": beta})
    reference = make_reference(model, config, ALONE)
    before = model.token_logprobs(batch.batch, 1.0).detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert reference is not None
    assert torch.equal(reference(batch), before)
    assert not torch.allclose(model.token_logprobs(batch.batch, 1.0), before)


def test_without_a_kl_term_nothing_is_kept(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCopy:
        @staticmethod
        def deepcopy(model: object) -> None:
            raise AssertionError("a reference model was built")

    monkeypatch.setattr(module, "copy", NoCopy)
    assert make_reference(toy.model(), CONFIGS["debug_reinforce"](), ALONE) is None
    with pytest.raises(AssertionError, match="was built"):  # the check sees one that is
        make_reference(toy.model(), CONFIGS["debug_reinforce"]().change(grpo={"beta": 0.1}), ALONE)


def test_the_reference_stays_where_the_run_began(toy: Any) -> None:
    assert_reference_is_the_start(toy.model(), packed(toy), 0.1)


def test_a_reference_that_moves_along_is_noticed(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared:
        @staticmethod
        def deepcopy(model: MedMO) -> MedMO:
            return model

    monkeypatch.setattr(module, "copy", Shared)
    with pytest.raises(AssertionError):
        assert_reference_is_the_start(toy.model(), packed(toy), 0.1)

"""Sampled rewards: the same at every number of processes, and those of prompts sampled at one temperature alone."""

import pytest

from medmo_core.datasets.embedded.tasks import eval_samples
from medmo_core.inference.kit import Kit
from medmo_core.models.medmo import MedMO
from medmo_recipes.configs import CONFIGS
from medmo_recipes.reinforcement import sharpening
from medmo_recipes.reinforcement.engine import InPlaceEngine, Request
from medmo_recipes.reinforcement.sharpening import _sample, sampled_box_reward
from medmo_recipes.settings.run_config import Rollout
from medmo_recipes.training.model.kit import load_kit


@pytest.fixture(scope="module")
def kit() -> Kit:
    return load_kit(CONFIGS["debug_instruct"](), "cpu")


def test_images_are_encoded_once_for_all_temperatures_and_samples_stay_the_same(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = dict(enumerate(eval_samples("grounding", n=3), start=7))
    rollouts = {t: Rollout(num_generations=2, max_new_tokens=6, temperature=t) for t in (1.0, 0.5)}
    requests = [
        Request(f"{s.id}#{number}", kit.processor.encode(s, for_generation=True)) for number, s in samples.items()
    ]
    expected = {
        t: [[g.tokens for g in group] for group in InPlaceEngine(kit.model).sample(requests, rollout, seed=3)]
        for t, rollout in rollouts.items()
    }
    encode, passes = MedMO.encode_images, list[int]()
    monkeypatch.setattr(MedMO, "encode_images", lambda model, batch: passes.append(1) or encode(model, batch))
    found = _sample(kit.model, kit.processor, samples, rollouts, 3)
    assert {t: [[g.tokens for g in a.generations] for a in answers] for t, answers in found.items()} == expected
    assert expected[1.0] != expected[0.5] and len(passes) == 1
    assert [a.prompt.sample for a in found[0.5]] == list(samples.values()), "the sample is what a reward needs"
    assert not any(a.prompt.patches or a.prompt.features is not None for a in found[1.0])


def test_two_processes_earn_what_one_earns(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharpening, "PROMPTS_PER_CALL", 2)

    def rewards(number: int) -> sharpening.SampledRewards:
        return sampled_box_reward(kit, num_prompts=5, num_generations=2, max_new_tokens=6, num_processes=number)

    one, two = rewards(1), rewards(2)
    assert two == one and set(one.rewards) == set(sharpening.TEMPERATURES)
    assert all(len(values) == len(one.samples) == 5 for values in one.rewards.values())

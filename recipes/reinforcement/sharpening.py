"""Reward gained by sampling colder: the check that separates learning from sharpening.

Reinforcement can raise the sampled reward by making the model surer of what it would have said anyway. Lowering the
temperature of the untouched model does the same for free; a gain that this also gives is sharpening.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from medmo_core.data.records.sample import Sample
from medmo_core.datasets.embedded.tasks import eval_samples
from medmo_core.inference.kit import Kit

from ..settings.run_config import Grpo, Rewards, Rollout
from .engine import InPlaceEngine
from .groups import reward_completions, sample_completions
from .reward_calls.reward_set import RewardSet

TEMPERATURES = (1.0, 0.7, 0.5, 0.3)


@dataclass(frozen=True)
class SampledRewards:
    """Rewards of one model's samples, prompt by prompt.

    Attributes:
        samples: the prompts, in their order.
        rewards: temperature -> mean reward of each prompt's samples.
    """

    samples: Sequence[Sample]
    rewards: Mapping[float, Sequence[float]]

    def means(self) -> dict[float, float]:
        """Return temperature -> mean reward over all prompts."""
        return {temperature: fmean(values) for temperature, values in self.rewards.items()}


def sampled_box_reward(
    kit: Kit,
    *,
    num_prompts: int,
    num_generations: int = 4,
    temperatures: Sequence[float] = TEMPERATURES,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> SampledRewards:
    """Return the box reward of samples on held-out grounding prompts under fixed crops.

    Args:
        kit: model and processor.
        num_prompts: held-out questions.
        num_generations: samples of each.
        temperatures: temperatures to sample at.
        max_new_tokens: longest sample.
        seed: seed of the samples; the prompts do not depend on it.
    """
    samples = eval_samples("grounding", "test", crops="fixed", n=num_prompts, seed=0)
    prompts = {number: kit.processor.encode(sample, for_generation=True) for number, sample in enumerate(samples)}
    rewards = Rewards(weights={"box": 1.0})
    box, engine = RewardSet.from_config(rewards), InPlaceEngine(kit.model)
    found: dict[float, list[float]] = {}
    for temperature in temperatures:
        rollout = Rollout(num_generations=num_generations, max_new_tokens=max_new_tokens, temperature=temperature)
        answers = sample_completions(engine, prompts, rollout, seed=seed)
        groups = reward_completions(
            answers, box, rewards.weights, kit.tokenizer, kit.processor.text, rollout, Grpo(), step=0, max_steps=1
        )
        found[temperature] = [float(group.rewards.mean()) for group in groups]
    return SampledRewards(samples, found)

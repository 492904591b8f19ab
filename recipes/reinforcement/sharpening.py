"""Reward gained by sampling colder: the check that separates learning from sharpening.

Reinforcement can raise the sampled reward by making the model surer of what it would have said anyway. Lowering the
temperature of the untouched model does the same for free; a gain that this also gives is sharpening.
"""

from collections.abc import Sequence

from medmo_core.datasets.embedded.tasks import eval_samples
from medmo_core.inference.kit import Kit

from ..settings.run_config import Grpo, Rewards, Rollout
from .engine import InPlaceEngine
from .groups import reward_completions, sample_completions
from .reward_calls.reward_set import RewardSet

TEMPERATURES = (1.0, 0.7, 0.5, 0.3)


def sampled_box_reward(
    kit: Kit,
    *,
    num_prompts: int,
    num_generations: int = 4,
    temperatures: Sequence[float] = TEMPERATURES,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> dict[float, float]:
    """Return temperature -> mean box reward of samples on held-out grounding prompts under fixed crops.

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
    means: dict[float, float] = {}
    for temperature in temperatures:
        rollout = Rollout(num_generations=num_generations, max_new_tokens=max_new_tokens, temperature=temperature)
        answers = sample_completions(engine, prompts, rollout, seed=seed)
        groups = reward_completions(
            answers, box, rewards.weights, kit.tokenizer, kit.processor.text, rollout, Grpo(), step=0, max_steps=1
        )
        means[temperature] = sum(float(group.rewards.mean()) for group in groups) / len(groups)
    return means

"""Reward gained by sampling colder: the check that separates learning from sharpening.

Reinforcement can raise the sampled reward by making the model surer of what it would have said anyway. Lowering the
temperature of the untouched model does the same for free; a gain that this also gives is sharpening.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from medmo_core.data.processor import Processor
from medmo_core.data.records.sample import Sample
from medmo_core.datasets.embedded.tasks import eval_samples
from medmo_core.inference.copies import Copies
from medmo_core.inference.kit import Kit
from medmo_core.models.medmo import MedMO

from ..settings.run_config import Grpo, Rewards, Rollout
from .engine import InPlaceEngine
from .groups import Completions, reward_completions, sample_completions
from .image_features import encode_images
from .reward_calls.reward_set import RewardSet

TEMPERATURES = (1.0, 0.7, 0.5, 0.3)
PROMPTS_PER_CALL = 40
"""Prompts that are sampled from in one go, whatever the number of processes: enough to keep the rows busy."""


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
    num_processes: int = 1,
) -> SampledRewards:
    """Return the box reward of samples on held-out grounding prompts under fixed crops.

    Args:
        kit: model and processor.
        num_prompts: held-out questions.
        num_generations: samples of each.
        temperatures: temperatures to sample at.
        max_new_tokens: longest sample.
        seed: seed of the samples; the prompts do not depend on it.
        num_processes: processes that sample, see `Copies`.
    """
    samples = eval_samples("grounding", "test", crops="fixed", n=num_prompts, seed=0)
    rollouts = {
        temperature: Rollout(num_generations=num_generations, max_new_tokens=max_new_tokens, temperature=temperature)
        for temperature in temperatures
    }
    numbered = list(enumerate(samples))
    chunks = [dict(numbered[start : start + PROMPTS_PER_CALL]) for start in range(0, len(samples), PROMPTS_PER_CALL)]
    answers: dict[float, list[Completions]] = {temperature: [] for temperature in temperatures}
    with Copies(kit.model, kit.processor, num_processes) as copies:
        for part in copies.start(_sample, [(chunk, rollouts, seed) for chunk in chunks]):
            for temperature, completions in part.items():
                answers[temperature] += completions
    rewards = Rewards(weights={"box": 1.0})
    box = RewardSet.from_config(rewards)
    found: dict[float, list[float]] = {}
    for temperature, rollout in rollouts.items():
        groups = reward_completions(
            answers[temperature], box, rewards.weights, kit.tokenizer, kit.processor.text, rollout, Grpo(),
            step=0, max_steps=1,
        )  # fmt: skip
        found[temperature] = [float(group.rewards.mean()) for group in groups]
    return SampledRewards(samples, found)


def _sample(
    model: MedMO, processor: Processor, samples: Mapping[int, Sample], rollouts: Mapping[float, Rollout], seed: int
) -> dict[float, list[Completions]]:
    """Sample from numbered prompts at every temperature; their images are encoded once for all."""
    prompts = {number: processor.encode(sample, for_generation=True) for number, sample in samples.items()}
    prompts = encode_images(model, prompts, per_pass=len(prompts))
    engine = InPlaceEngine(model)
    answers = {key: sample_completions(engine, prompts, rollout, seed=seed) for key, rollout in rollouts.items()}
    return {
        # Rewards read a prompt's sample; its pixels would only be sent from process to process.
        key: [replace(a, prompt=replace(a.prompt, patches={}, features=None)) for a in completions]
        for key, completions in answers.items()
    }

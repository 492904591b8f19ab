"""Groups of completions: prompts drawn by number, answers sampled, rewarded, compared within their group, packed again.

Everything here is a pure function of the run's seed and the number of the draw: which process samples a prompt, and
what else it samples beside it, changes nothing.

Shapes: G generations per prompt (the group), L completion tokens of a packed batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medmo_core.boxes import AnyBoxes, ParsedBoxes
from medmo_core.data.document import Document
from medmo_core.data.processor import Processor
from medmo_core.data.records.sample import Sample
from medmo_core.data.sample_text import SampleText
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.generation.decoding import Generation

from ..settings.run_config import Grpo, Rollout
from ..training.loading.documents import DocumentMaker
from ..training.loading.skipped import SkippedSample
from .advantages import combine, group_advantages, overlong_penalties
from .engine import Request, RolloutEngine
from .reward_calls.reward_set import RewardSet, parse_completions

OVERLONG = "overlong"
"""Name of the length penalty among a group's components."""


@dataclass(frozen=True)
class Completions:
    """Completions of one prompt.

    Attributes:
        name: sample id and number of the draw; unique in a run, it seeds the sampling.
        prompt: the encoded prompt.
        generations: G continuations.
    """

    name: str
    prompt: Document
    generations: Sequence[Generation]


@dataclass(frozen=True)
class Group:
    """One prompt with its completions and what they earned.

    Attributes:
        name: sample id and number of the draw; unique in a run, it seeds the sampling.
        prompt: the encoded prompt.
        generations: G continuations.
        texts: their decoded texts.
        parsed_boxes: boxes that the texts name, as the checkpoint writes them; None where the task is not grounding.
        components: reward name -> G values; None where it does not apply. With grpo.overlong_tokens also "overlong".
        rewards: (G,) float64, the weighted mean over the components that apply, and the length penalty added.
        advantages: (G,) float64.
    """

    name: str
    prompt: Document
    generations: Sequence[Generation]
    texts: Sequence[str]
    parsed_boxes: Sequence[ParsedBoxes[AnyBoxes] | None]
    components: Mapping[str, Sequence[float | None]]
    rewards: Tensor
    advantages: Tensor

    @property
    def is_flat(self) -> bool:
        """Whether all completions earned the same: nothing to learn from."""
        return not bool(self.advantages.any())

    @property
    def is_finite(self) -> bool:
        """Whether rewards and advantages are finite, and the rewards small enough to be averaged."""
        spread = torch.stack([self.rewards.mean(), self.rewards.std(correction=0), *self.advantages])
        return bool(spread.isfinite().all())


def draw_prompts(
    draw: Callable[[int], Sample], processor: Processor, numbers: Sequence[int]
) -> tuple[dict[int, Document], list[SkippedSample]]:
    """Encode the prompts of the given draws.

    Returns:
        Number -> prompt, and the draws that cannot be used, with the reason.
    """
    documents = DocumentMaker(draw, processor, for_generation=True)
    outcomes = {number: documents.documents_of(number) for number in numbers}
    prompts = {number: outcome[0] for number, outcome in outcomes.items() if not isinstance(outcome, SkippedSample)}
    return prompts, [outcome for outcome in outcomes.values() if isinstance(outcome, SkippedSample)]


def sample_completions(
    engine: RolloutEngine, prompts: Mapping[int, Document], rollout: Rollout, *, seed: int
) -> list[Completions]:
    """Sample each prompt's completions.

    Args:
        engine: samples from the policy as it stands.
        prompts: number of the draw -> prompt.
        rollout: how to sample.
        seed: names the random numbers, with the number of each draw.

    Raises:
        FloatingPointError: no probability of a completion is a number; names the samples.
    """
    requests = [Request(f"{prompt.sample.id}#{number}", prompt) for number, prompt in prompts.items()]
    sampled = engine.sample(requests, rollout, seed=seed)
    answers = [Completions(r.name, r.prompt, generations) for r, generations in zip(requests, sampled, strict=True)]
    lost = [a.name for a in answers if any(g.logps and not np.isfinite(g.logps).any() for g in a.generations)]
    if lost:
        raise FloatingPointError(f"sampled probabilities are not numbers, with samples {', '.join(lost)}")
    return answers


def reward_completions(
    answers: Sequence[Completions],
    rewards: RewardSet,
    weights: Mapping[str, float],
    tokenizer: Tokenizer,
    sample_text: SampleText,
    rollout: Rollout,
    grpo: Grpo,
    *,
    step: int,
    max_steps: int,
) -> list[Group]:
    """Reward completions and compare them within their groups.

    Args:
        answers: what was sampled.
        rewards: the functions.
        weights: reward name -> weight.
        tokenizer: decodes the completions.
        sample_text: words of the questions; its profile reads boxes.
        rollout: longest completion.
        grpo: how to compare.
        step: finished steps.
        max_steps: number of steps of the run.

    Raises:
        RewardError: a reward failed; names it and the sample.
    """
    if not answers:
        return []
    rows = [(answer, generation) for answer in answers for generation in answer.generations]
    texts = [tokenizer.decode(generation.tokens) for _, generation in rows]
    questions = {answer.name: sample_text.question_text(answer.prompt.sample) for answer in answers}
    samples = [answer.prompt.sample for answer, _ in rows]
    parsed_boxes = parse_completions(samples, texts, sample_text.profile)
    scores = rewards.score(
        samples,
        texts,
        [generation for _, generation in rows],
        prompts=[questions[answer.name] for answer, _ in rows],
        profile=sample_text.profile,
        parsed_boxes=parsed_boxes,
        step=step,
        max_steps=max_steps,
    )
    groups: list[Group] = []
    start = 0
    for answer in answers:
        own = slice(start, start := start + len(answer.generations))
        components: dict[str, list[float | None]] = {name: list(values[own]) for name, values in scores.items()}
        earned = combine(components, weights, normalise=False)
        compared = combine(components, weights, normalise=True) if grpo.normalise_components else earned
        if grpo.overlong_tokens:
            lengths = [len(sampled_tokens(generation)) for generation in answer.generations]
            costs = overlong_penalties(lengths, longest=rollout.max_new_tokens, overlong_tokens=grpo.overlong_tokens)
            components[OVERLONG] = list(costs)
            earned, compared = (r + torch.tensor(costs, dtype=torch.float64) for r in (earned, compared))
        advantages = group_advantages(compared[None], grpo.advantage)[0]
        groups.append(
            Group(
                name=answer.name,
                prompt=answer.prompt,
                generations=answer.generations,
                texts=texts[own],
                parsed_boxes=parsed_boxes[own],
                components=components,
                rewards=earned,
                advantages=advantages,
            )
        )
    return groups


def sampled_tokens(generation: Generation) -> list[int]:
    """Return the tokens that were chosen: those of the text and, where one was sampled, the stop token."""
    return [*generation.tokens, generation.stop_token] if generation.stop_token is not None else generation.tokens

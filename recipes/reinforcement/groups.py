"""Groups of completions: prompts drawn by number, answers sampled, rewarded, compared within their group, packed again.

Everything here is a pure function of the run's seed and the number of the draw: which process samples a prompt, and
what else it samples beside it, changes nothing.

Shapes: G generations per prompt (the group), L completion tokens of a packed batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medmo_core.batch import IGNORE_INDEX, Batch
from medmo_core.data.packing import pack, prefix_trees
from medmo_core.data.processor import Item, Processor
from medmo_core.data.records.sample import Sample
from medmo_core.generation.decoding import Generation

from ..settings.run_config import Grpo, Rollout
from ..training.distributed.world import World
from ..training.loading.documents import Documents
from ..training.loading.skipped import Fault
from .advantages import combine, group_advantages, overlong_penalties
from .engine import Request, RolloutEngine
from .reward_calls.reward_set import RewardSet

OVERLONG = "overlong"
"""Name of the length penalty among a group's components."""


@dataclass(frozen=True)
class Answers:
    """One prompt and what the model said to it.

    Attributes:
        name: sample id and number of the draw; unique in a run, it seeds the sampling.
        prompt: the encoded prompt.
        generations: G continuations.
    """

    name: str
    prompt: Item
    generations: Sequence[Generation]


@dataclass(frozen=True)
class Group:
    """One prompt with its completions and what they earned.

    Attributes:
        name: sample id and number of the draw; unique in a run, it seeds the sampling.
        prompt: the encoded prompt.
        generations: G continuations.
        texts: their decoded texts.
        components: reward name -> G values; None where it does not apply. With grpo.overlong_tokens also "overlong".
        rewards: (G,) float64, the weighted mean over the components that apply, and the length penalty added.
        advantages: (G,) float64.
    """

    name: str
    prompt: Item
    generations: Sequence[Generation]
    texts: Sequence[str]
    components: Mapping[str, Sequence[float | None]]
    rewards: Tensor
    advantages: Tensor

    @property
    def is_flat(self) -> bool:
        """Whether all completions earned the same: nothing to learn from."""
        return not bool(self.advantages.any())


@dataclass(frozen=True)
class Completion:
    """A document to learn from: prompt plus one completion, only the completion labelled.

    Attributes:
        item: the document.
        advantage: of every one of its tokens.
        token_weight: of every one of its tokens in the step's loss; the denominators are in it.
        sampled_logps: what the sampler thought of each token.
    """

    item: Item
    advantage: float
    token_weight: float
    sampled_logps: Sequence[float]


@dataclass(frozen=True)
class PolicyBatch:
    """Packed completions with one number per completion token, in the order of `MedMO.token_logprobs`.

    Attributes:
        batch: prompt and completion of each document.
        advantages: (L,).
        token_weights: (L,).
        sampled_logps: (L,).
    """

    batch: Batch
    advantages: Tensor
    token_weights: Tensor
    sampled_logps: Tensor

    def to(self, device: torch.device) -> "PolicyBatch":
        """Return a copy on `device`."""
        tensors = (t.to(device) for t in (self.advantages, self.token_weights, self.sampled_logps))
        return PolicyBatch(self.batch.to(device), *tensors)


def draw_prompts(
    draw: Callable[[int], Sample], processor: Processor, numbers: Sequence[int]
) -> tuple[dict[int, Item], list[Fault]]:
    """Encode the prompts of the given draws.

    Returns:
        Number -> prompt, and the draws that cannot be used, with the reason.
    """
    documents = Documents(draw, processor, for_generation=True)
    outcomes = {number: documents.items(number) for number in numbers}
    prompts = {number: outcome[0] for number, outcome in outcomes.items() if not isinstance(outcome, Fault)}
    return prompts, [outcome for outcome in outcomes.values() if isinstance(outcome, Fault)]


def sample_answers(engine: RolloutEngine, prompts: Mapping[int, Item], rollout: Rollout, *, seed: int) -> list[Answers]:
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
    answers = [Answers(r.name, r.prompt, generations) for r, generations in zip(requests, sampled, strict=True)]
    lost = [a.name for a in answers if any(g.logps and not np.isfinite(g.logps).any() for g in a.generations)]
    if lost:
        raise FloatingPointError(f"sampled probabilities are not numbers, with samples {', '.join(lost)}")
    return answers


def score_answers(
    answers: Sequence[Answers],
    rewards: RewardSet,
    weights: Mapping[str, float],
    processor: Processor,
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
        processor: made the prompts; decodes the completions.
        rollout: longest completion.
        grpo: how to compare.
        step: finished steps.
        max_steps: of the run.

    Raises:
        RewardError: a reward failed; names it and the sample.
    """
    if not answers:
        return []
    rows = [(answer, generation) for answer in answers for generation in answer.generations]
    texts = [processor.tokenizer.decode(generation.tokens) for _, generation in rows]
    questions = {answer.name: question(processor, answer.prompt.sample) for answer in answers}
    scores = rewards.score(
        [answer.prompt.sample for answer, _ in rows],
        texts,
        [generation for _, generation in rows],
        prompts=[questions[answer.name] for answer, _ in rows],
        profile=processor.profile,
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
        groups.append(Group(answer.name, answer.prompt, answer.generations, texts[own], components, earned, advantages))
    return groups


def question(processor: Processor, sample: Sample) -> str:
    """Return the text of the turn that the model answers."""
    content = processor.messages(sample, for_generation=True)[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def sampled_tokens(generation: Generation) -> list[int]:
    """Return the tokens that were chosen: those of the text and, where one was sampled, the stop token."""
    return [*generation.tokens, generation.stop_token] if generation.stop_token is not None else generation.tokens


def join(prompt: Item, tokens: Sequence[int]) -> Item:
    """Return prompt and completion as one document; only the completion is labelled."""
    count = len(tokens)
    completion = np.asarray(tokens, dtype=prompt.input_ids.dtype)
    # Text goes on after the largest position of the prompt on all three axes, as in generation.
    positions = prompt.position_ids.max() + 1 + np.arange(count, dtype=prompt.position_ids.dtype)
    return replace(
        prompt,
        input_ids=np.concatenate([prompt.input_ids, completion]),
        labels=np.concatenate([np.full_like(prompt.input_ids, IGNORE_INDEX), completion]),
        position_ids=np.concatenate([prompt.position_ids, np.broadcast_to(positions, (3, count))], axis=1),
    )


def to_completions(groups: Sequence[Group], rollout: Rollout, grpo: Grpo, world: World) -> list[Completion]:
    """Turn groups into documents whose token weights carry the global denominators; every process calls this.

    Tokens whose log-probability the sampler could not tell, and with grpo.mask_truncated completions that were cut, are
    left out of the denominators too.
    """
    kept: list[tuple[Group, int, int]] = []
    for group in groups:
        for index, generation in enumerate(group.generations):
            usable = sum(math.isfinite(logp) for logp in generation.logps)
            if usable and (generation.finished or not grpo.mask_truncated):
                kept.append((group, index, usable))
    own = torch.tensor([len(kept), sum(usable for _, _, usable in kept)], dtype=torch.int64)
    num_completions, num_tokens = world.sum(own).tolist()
    completions = []
    for group, index, usable in kept:
        match grpo.loss:
            case "dapo" | "cispo":  # every token of the step weighs the same
                weight = 1.0 / num_tokens
            case "grpo" | "gspo":  # every completion weighs the same
                weight = 1.0 / (num_completions * usable)
            case "dr_grpo":  # a divisor that no length can change
                weight = 1.0 / (num_completions * rollout.max_new_tokens)
        generation = group.generations[index]
        item = join(group.prompt, sampled_tokens(generation))
        completions.append(Completion(item, float(group.advantages[index]), weight, generation.logps))
    return completions


def silent(group: Group) -> Completion:
    """Return a completion of a group with no weight: sharded processes run the same number of passes."""
    generation = group.generations[0]
    return Completion(join(group.prompt, sampled_tokens(generation)), 0.0, 0.0, generation.logps)


def pack_completions(completions: Sequence[Completion], *, share_prefixes: bool = True) -> PolicyBatch:
    """Pack documents to learn from, with one number per completion token; neighbours share their prompt.

    A token whose log-probability the sampler could not tell has no weight.
    """
    lengths = torch.tensor([len(c.sampled_logps) for c in completions])
    sampled_logps = torch.tensor([logp for c in completions for logp in c.sampled_logps], dtype=torch.float64)

    def per_token(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).repeat_interleave(lengths)

    return PolicyBatch(
        batch=pack([c.item for c in completions], share_prefixes),
        advantages=per_token([c.advantage for c in completions]),
        token_weights=per_token([c.token_weight for c in completions]) * sampled_logps.isfinite(),
        sampled_logps=sampled_logps,
    )


def divide(
    completions: Sequence[Completion],
    fillers: Sequence[Completion],
    size: int,
    world: World,
    *,
    equal: bool,
    share_prefixes: bool = True,
) -> list[PolicyBatch]:
    """Cut this process's completions into packed micro-batches; those of one prompt stay together where they fit.

    Args:
        completions: documents to learn from; may be empty.
        fillers: documents of this process without weight (`silent`), of which the first is used.
        size: completions per micro-batch at the most.
        world: the processes.
        equal: give every process the same number of micro-batches, as sharded models need.
        share_prefixes: compute a prompt once for all of its completions in a micro-batch.

    Raises:
        ValueError: `equal` is asked for and this process has no document at all.
    """
    chunks = _chunks(completions, size)
    if equal:
        most = max(world.gather(len(chunks)))
        if not all(world.gather(bool(fillers))):
            raise ValueError("parallel.shard=true: a process has no usable prompt in this step; mend the data")
        chunks += [list(fillers[:1]) for _ in range(most - len(chunks))]
    return [pack_completions(chunk, share_prefixes=share_prefixes) for chunk in chunks]


def _chunks(completions: Sequence[Completion], size: int) -> list[list[Completion]]:
    """Cut completions into chunks of at most `size`, in order; only a prompt with more of them is cut itself."""
    chunks: list[list[Completion]] = []
    start = 0
    for tree in prefix_trees([completion.item for completion in completions]):
        stop = start + len(tree.items)
        for first in range(start, stop, size):
            piece = completions[first : min(first + size, stop)]
            if not chunks or len(chunks[-1]) + len(piece) > size:
                chunks.append([])
            chunks[-1] += piece
        start = stop
    return chunks

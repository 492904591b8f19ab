"""Groups of completions: prompts drawn by number, answers sampled, rewarded, compared within their group, packed again.

Everything here is a pure function of the run's seed and the number of the draw: which process samples a prompt, and
what else it samples beside it, changes nothing.

Shapes: P prompts, G generations per prompt (the group), L completion tokens of a packed batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medmo_core.batch import IGNORE_INDEX, Batch
from medmo_core.data.packing import pack, prefix_trees
from medmo_core.data.process import Item, Processor
from medmo_core.data.record import Sample
from medmo_core.models.generation import Generation
from medmo_core.models.medmo import MedMO
from medmo_core.profile import CheckpointProfile
from medmo_core.rewards import REWARDS

from .config import ConfigError, Rollout, unknown_key
from .distributed import World
from .documents import Documents
from .skipped import Fault

STD_FLOOR = 1e-4  # added to a group's standard deviation, as in published GRPO code: a near-tie is not blown up


@dataclass(frozen=True)
class Group:
    """One prompt with its completions and what they earned.

    Attributes:
        name: sample id and number of the draw; unique in a run, it seeds the sampling.
        prompt: the encoded prompt.
        generations: G continuations.
        texts: their decoded texts.
        components: reward name -> G values; None where it does not apply.
        rewards: (G,) float64, the weighted mean over the components that apply.
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


def sample_groups(
    model: MedMO,
    processor: Processor,
    prompts: Mapping[int, Item],
    weights: Mapping[str, float],
    rollout: Rollout,
    *,
    seed: int,
) -> list[Group]:
    """Sample each prompt's completions, score them, and compare them within the group.

    The prompt runs through the model once, however many completions are drawn from it.

    Args:
        model: samples as it stands.
        processor: made the prompts; decodes the completions.
        prompts: number of the draw -> prompt.
        weights: reward name -> weight.
        rollout: how to sample and how to compare.
        seed: names the random numbers, with the number of each draw.

    Raises:
        ConfigError: a reward that does not exist.
        FloatingPointError: the model's probabilities are not numbers; names the samples.
    """
    device = model.head_weight.device
    groups: list[Group] = []
    numbers = list(prompts)
    per_pass = max(1, rollout.rows_per_pass // rollout.num_generations)
    for start in range(0, len(numbers), per_pass):
        chunk = {f"{prompts[n].sample.id}#{n}": prompts[n] for n in numbers[start : start + per_pass]}
        batch = replace(pack(list(chunk.values())), sample_ids=tuple(chunk))
        outcomes = model.generate(
            batch.to(device),
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            num_generations=rollout.num_generations,
            seed=seed,
        )
        for (name, prompt), generations in zip(chunk.items(), outcomes, strict=True):
            groups.append(_score_group(name, prompt, generations, processor, weights, rollout.scale_rewards))
    lost = [g.name for g in groups if not all(np.isfinite(r.logps).all() for r in g.generations)]
    if lost:
        raise FloatingPointError(f"sampled probabilities are not numbers, with samples {', '.join(lost)}")
    return groups


def _score_group(
    name: str,
    prompt: Item,
    generations: Sequence[Generation],
    processor: Processor,
    weights: Mapping[str, float],
    scale_rewards: bool,
) -> Group:
    texts = [processor.tokenizer.decode(generation.tokens) for generation in generations]
    components = reward_components(weights, [prompt.sample] * len(texts), texts, processor.profile)
    rewards = torch.tensor(combine_rewards(components, weights), dtype=torch.float64)
    advantages = group_advantages(rewards[None], scale=scale_rewards)[0]
    return Group(name, prompt, generations, texts, components, rewards, advantages)


def reward_components(
    names: Sequence[str] | Mapping[str, float],
    samples: Sequence[Sample],
    completions: Sequence[str],
    profile: CheckpointProfile,
) -> dict[str, list[float | None]]:
    """Score completions by each named reward; None where it does not apply to the sample.

    Args:
        names: keys of `medmo_core.rewards.REWARDS`.
        samples: one per completion.
        completions: texts.
        profile: how the checkpoint writes boxes.

    Raises:
        ConfigError: a reward that does not exist.
    """
    columns = {
        "task": [sample.task for sample in samples],
        "answer": [sample.answer for sample in samples],
        "boxes": [sample.truth_boxes() for sample in samples],
        "facts": [sample.facts for sample in samples],
        "image_size": [sample.image_size() for sample in samples],
        "profile": [profile] * len(samples),
    }
    scores: dict[str, list[float | None]] = {}
    for name in names:
        if name not in REWARDS:
            raise unknown_key(name, REWARDS, "reward in rewards.weights")
        scores[name] = REWARDS[name](list(completions), **columns)
    return scores


def combine_rewards(components: Mapping[str, Sequence[float | None]], weights: Mapping[str, float]) -> list[float]:
    """Return each completion's weighted mean over the rewards that apply to it; 0 where none does.

    Raises:
        ConfigError: no weight is above zero.
    """
    if not any(weight > 0 for weight in weights.values()):
        raise ConfigError(f"rewards.weights = {dict(weights)}: expected at least one weight above 0")
    combined: list[float] = []
    for values in zip(*(components[name] for name in weights), strict=True):
        applying = [(w, v) for w, v in zip(weights.values(), values, strict=True) if v is not None]
        total = sum(w for w, _ in applying)
        combined.append(sum(w * v for w, v in applying) / total if total > 0 else 0.0)
    return combined


def group_advantages(rewards_PG: Tensor, *, scale: bool) -> Tensor:
    """Compare each completion with its own group.

    Args:
        rewards_PG: (P, G) rewards.
        scale: divide by the group's standard deviation, so that easy and hard prompts weigh alike; off: a group with a
            wide spread weighs more (Dr. GRPO).

    Returns:
        (P, G); exactly 0 where all rewards of a group are equal.

    Reference: Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1; Liu et al., arXiv 2503.20783.
    """
    centred = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    if scale:
        centred = centred / (rewards_PG.std(dim=1, keepdim=True) + STD_FLOOR)
    # The mean of equal numbers can differ from them in the last bit.
    flat = rewards_PG.amax(dim=1, keepdim=True) == rewards_PG.amin(dim=1, keepdim=True)
    return centred.masked_fill(flat, 0.0)


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


def pack_completions(completions: Sequence[Completion], *, share_prefixes: bool = True) -> PolicyBatch:
    """Pack documents to learn from, with one number per completion token; neighbours share their prompt."""
    lengths = torch.tensor([len(c.sampled_logps) for c in completions])

    def per_token(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).repeat_interleave(lengths)

    return PolicyBatch(
        batch=pack([c.item for c in completions], share_prefixes),
        advantages=per_token([c.advantage for c in completions]),
        token_weights=per_token([c.token_weight for c in completions]),
        sampled_logps=torch.tensor([logp for c in completions for logp in c.sampled_logps], dtype=torch.float64),
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
        fillers: any documents of this process, used with weight 0.
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
        silent = [replace(c, token_weight=0.0) for c in fillers[:1]]
        if not all(world.gather(bool(silent))):
            raise ValueError("parallel.shard=true: a process has no usable prompt in this step; mend the data")
        chunks += [list(silent) for _ in range(most - len(chunks))]
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

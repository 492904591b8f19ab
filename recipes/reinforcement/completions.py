"""Completions as documents to learn from: joined to their prompts, weighted, and packed into micro-batches.

Shapes: L completion tokens of a packed batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medmo_core.batch import IGNORE_INDEX, Batch
from medmo_core.data.document import Document
from medmo_core.data.packing import pack, prefix_trees
from medmo_core.errors import InputError

from ..settings.run_config import Grpo, Rollout
from ..training.distributed.world import World
from .groups import Group, sampled_tokens


@dataclass(frozen=True)
class Completion:
    """A document to learn from: prompt plus one completion, only the completion labelled.

    Attributes:
        document: the document.
        advantage: advantage of each of its tokens.
        token_weight: weight of each of its tokens in the step's loss, denominators included.
        sampled_logps: log-probability of each token as the sampler gave it.
    """

    document: Document
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


def join(prompt: Document, tokens: Sequence[int]) -> Document:
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

    Tokens whose log-probability the sampler did not know, and with grpo.mask_truncated completions that were cut, are
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
        document = join(group.prompt, sampled_tokens(generation))
        completions.append(Completion(document, float(group.advantages[index]), weight, generation.logps))
    return completions


def silent(group: Group) -> Completion:
    """Return a completion of a group with no weight: sharded processes run the same number of passes."""
    generation = group.generations[0]
    return Completion(join(group.prompt, sampled_tokens(generation)), 0.0, 0.0, generation.logps)


def pack_completions(completions: Sequence[Completion], *, share_prefixes: bool = True) -> PolicyBatch:
    """Pack documents to learn from, with one number per completion token; neighbours share their prompt.

    A token whose log-probability the sampler did not know has no weight.
    """
    lengths = torch.tensor([len(c.sampled_logps) for c in completions])
    sampled_logps = torch.tensor([logp for c in completions for logp in c.sampled_logps], dtype=torch.float64)

    def per_token(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).repeat_interleave(lengths)

    return PolicyBatch(
        batch=pack([c.document for c in completions], share_prefixes),
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
        InputError: `equal` is asked for and this process has no document at all.
    """
    chunks = _chunks(completions, size)
    if equal:
        most = max(world.gather(len(chunks)))
        if not all(world.gather(bool(fillers))):
            raise InputError("parallel.shard=true: a process has no usable prompt in this step; fix the data")
        chunks += [list(fillers[:1]) for _ in range(most - len(chunks))]
    return [pack_completions(chunk, share_prefixes=share_prefixes) for chunk in chunks]


def _chunks(completions: Sequence[Completion], size: int) -> list[list[Completion]]:
    """Cut completions into chunks of at most `size`, in order; only a prompt with more of them is cut itself."""
    chunks: list[list[Completion]] = []
    start = 0
    for tree in prefix_trees([completion.document for completion in completions]):
        stop = start + len(tree.items)
        for first in range(start, stop, size):
            piece = completions[first : min(first + size, stop)]
            if not chunks or len(chunks[-1]) + len(piece) > size:
                chunks.append([])
            chunks[-1] += piece
        start = stop
    return chunks

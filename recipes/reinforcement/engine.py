"""Sampling of completions: the protocol that reinforce samples through, and the model itself behind it.

Another engine, such as a separate inference server, can stand in the place of `InPlaceEngine`: it must return the
log-probabilities by the convention of `medmo_core.generation.sampling` (the full distribution at the sampling
temperature, before top-k, top-p and the ban on placeholders), never sample a placeholder, and show that it answers with
the weights that the trainer has now.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from medmo_core.batch import Batch
from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.generation.decoding import Generation
from medmo_core.models.medmo import MedMO

from ..settings.run_config import Rollout
from ..training.distributed.sharding import whole_weights


@dataclass(frozen=True)
class Request:
    """Request for completions of one prompt.

    Attributes:
        name: unique in the run; with the seed it names the random numbers.
        prompt: prompt without labels.
    """

    name: str
    prompt: Document


class RolloutEngine(Protocol):
    """Whatever samples completions."""

    def sample(self, requests: Sequence[Request], rollout: Rollout, *, seed: int) -> list[list[Generation]]:
        """Return `rollout.num_generations` completions of each prompt, in the order of the requests.

        A completion depends on the weights, its prompt, its name, its number in the group and the seed, not on what
        else is asked for.
        """
        ...


class InPlaceEngine:
    """The policy itself as its own sampler: no second copy of the weights, so none that could be stale.

    Only a reference to the model is kept. Keys, values and image features live for one call; features that a prompt
    brings along (`Document.features`) are used as they are, and are the caller's to keep fresh. Every process of a
    sharded model calls `sample` once a step, also one without prompts: the weights are gathered together, and then
    each process decodes as long as it needs.

    Args:
        model: model on its device, sharded or not.
        stop_token_ids: tokens that end a completion; None: the end token of the model's config.
    """

    def __init__(self, model: MedMO, stop_token_ids: Sequence[int] | None = None) -> None:
        self.model, self.stop_token_ids = model, stop_token_ids

    def sample(self, requests: Sequence[Request], rollout: Rollout, *, seed: int) -> list[list[Generation]]:
        """Sample with at most `rollout.rows_per_pass` completions at the same time; see `RolloutEngine.sample`.

        Each prompt and its images are run once, when the first of its completions is due.

        Raises:
            ValueError: a name is used twice.
        """
        prompts = _Requests(requests, self.model.head_weight.device)
        twice = sorted({name for name in prompts.names if prompts.names.count(name) > 1})
        if twice:
            raise ValueError(f"requests named {', '.join(twice)} occur twice: the name of a request must be its own")
        with whole_weights(self.model):
            return self.model.generate(
                prompts,
                max_new_tokens=rollout.max_new_tokens,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                top_k=rollout.top_k,
                num_generations=rollout.num_generations,
                stop_token_ids=self.stop_token_ids,
                seed=seed,
                num_rows=rollout.rows_per_pass,
            )


class _Requests:
    """Requests as prompts that are packed when they are due."""

    def __init__(self, requests: Sequence[Request], device: torch.device) -> None:
        self.requests, self.device = requests, device
        self.names = [request.name for request in requests]

    def batch(self, numbers: range) -> Batch:
        """Pack some of the prompts."""
        chosen = [self.requests[number] for number in numbers]
        batch = pack([request.prompt for request in chosen])
        return replace(batch, sample_ids=tuple(request.name for request in chosen)).to(self.device)

"""The policy that the KL term holds on to: the one that the run began with."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from medmo_core.models.medmo import MedMO

from ..settings.run_config import RunConfig
from ..training.distributed.sharding import prepare
from ..training.distributed.world import World
from ..training.model.lora import has_adapters, without_adapters
from .completions import PolicyBatch

Reference = Callable[[PolicyBatch], Tensor]
"""Batch -> (L,) log-probabilities of its completion tokens."""


def make_reference(model: MedMO, config: RunConfig, world: World) -> Reference | None:
    """Return the starting policy, or None without a KL term (grpo.beta=0), where nothing is kept of it.

    With adapters it is the model without them; else a copy, laid over the processes as the model will be.

    Args:
        model: model before `prepare` and the first step, once what trains has been chosen.
        config: config of the run.
        world: the processes.
    """
    if config.grpo.beta == 0:
        return None
    temperature = config.rollout.temperature
    if has_adapters(model):

        @torch.no_grad()
        def base(batch: PolicyBatch) -> Tensor:
            with without_adapters(model):
                return model.token_logprobs(batch.batch, temperature)

        return base
    copied = copy.deepcopy(model).requires_grad_(False)
    prepare(copied, config, world)

    @torch.no_grad()
    def start(batch: PolicyBatch) -> Tensor:
        return copied.token_logprobs(batch.batch, temperature)

    return start

"""Three steps are the same however their documents are divided: micro-batches, accumulation, number of processes.

Every loss is divided by the step's number of target tokens, over all processes, known before the first backward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from medmo_core.batch import Batch
from medmo_core.data.packing import pack
from medmo_recipes.training.distributed.shards import whole_tensors
from medmo_recipes.training.distributed.world import World, connect

NUM_STEPS = 3
LENGTHS = (3, 7, 4, 1, 6, 2)
"""Answers of the documents of a step: a mean of means is another number than the mean."""


def documents(training: Any, step: int) -> list[Any]:
    toy = training.toy
    grids = [[(4, 4)], [], [(4, 6), (4, 4)], [], [], [(6, 4)]]
    seeds = range(10 * step, 10 * step + len(grids))
    prompts = [toy.prompt(f"{seed}", grid, seed=seed) for seed, grid in zip(seeds, grids, strict=True)]
    return [toy.extend(p, 2, n, seed=seed) for p, n, seed in zip(prompts, LENGTHS, seeds, strict=True)]


def train(
    training: Any, world: World, micro_batch: int, *, shard: bool = False, minimise: Any = None
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Take three steps with this process's share of the documents; returns losses, norms and final weights."""
    model = training.model()
    if shard:
        training.lay(world, model)
    optimizer = training.optimizer(model)
    losses, norms = [], []
    for step in range(NUM_STEPS):
        items = documents(training, step)
        own = [items[index] for index in world.share(len(items))]
        batches: Sequence[Batch] = [pack(own[i : i + micro_batch]) for i in range(0, len(own), micro_batch)]
        result = training.step(world, model, optimizer, batches, step, minimise and minimise(model))
        losses.append(result.loss)
        norms.append(result.grad_norm)
    return losses, norms, whole_tensors(model, world)


@pytest.fixture(scope="module")
def expected(training: Any) -> Any:
    """The same steps with all documents of a step in one pass of one process."""
    return train(training, World(rank=0, size=1, device=torch.device("cpu")), len(LENGTHS))


def check(found: Any, expected: Any) -> None:
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-11)
    for name, weight in found[2].items():
        assert torch.allclose(weight, expected[2][name], rtol=1e-7, atol=1e-9), name


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_only_add_up(training: Any, expected: Any, micro_batch: int) -> None:
    check(train(training, World(rank=0, size=1, device=torch.device("cpu")), micro_batch), expected)


def test_processes_only_add_up(training: Any, expected: Any, run_processes: Callable[..., list[Any]]) -> None:
    """Two processes with whole copies and with shards; the latter accumulate over two passes."""

    def both() -> None:
        with connect("cpu", shard=True) as world:
            check(train(training, world, 3), (*expected[:2], expected[2] if world.is_main else {}))
            check(train(training, world, 2, shard=True), expected)

    run_processes(both)


def test_a_mean_of_means_is_noticed(training: Any, expected: Any) -> None:
    """Each pass divided by its own tokens, as where a trainer averages over micro-batches."""

    def mean_of_means(model: Any) -> Callable[[Batch], Any]:
        def minimise(batch: Batch) -> Any:
            losses = model.token_losses(batch)
            share = sum(LENGTHS) / (3 * len(losses.cross_entropy))  # of three passes
            return losses._replace(total=losses.total * share)

        return minimise

    alone = World(rank=0, size=1, device=torch.device("cpu"))
    with pytest.raises(AssertionError):
        check(train(training, alone, 2, minimise=mean_of_means), expected)

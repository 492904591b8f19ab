"""Gradients are clipped by one norm over all numbers of all parameters, on whichever processes they lie."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from medmo_recipes.training.distributed.shards import whole_tensors
from medmo_recipes.training.distributed.world import World, connect
from medmo_recipes.training.optim import optimizer as optim_module

CLIP_NORM = 0.05
"""Far below the gradients' norm: every step is clipped."""
OWN = (("image", "text"), ("other text", "other image"))
"""Batches of both processes, one entry per pass."""


def step(training: Any, world: World, model: Any, own: list[str]) -> tuple[float, dict[str, Tensor]]:
    batches = training.batches()
    optimizer = training.optimizer(model, clip_norm=CLIP_NORM)
    result = training.step(world, model, optimizer, [batches[name] for name in own], 0)
    return result.grad_norm, whole_tensors(model, world)


@pytest.fixture(scope="module")
def expected(training: Any) -> tuple[float, dict[str, Tensor]]:
    """One process; that the norm is the norm is checked against the definition."""
    model, batches = training.model(), training.batches()
    gradients = training.gradients(model, [batches[name] for names in OWN for name in names])
    num_targets = sum(int(batch.labels.ge(0).sum()) for batch in batches.values())
    whole = torch.cat([g.flatten() for name, g in gradients.items() if name != "loss"]).norm() / num_targets
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    norm, weights = step(training, alone, training.model(), [name for names in OWN for name in names])
    assert norm == pytest.approx(whole.item(), rel=1e-12)
    assert norm > 10 * CLIP_NORM
    return norm, weights


def check(found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-11)
    for name, weight in found[1].items():
        torch.testing.assert_close(weight, expected[1][name], rtol=1e-7, atol=1e-10, msg=name)


def partly_sharded(model: Any) -> Any:
    """Shard the decoder's layers and leave the rest whole: both kinds in one norm."""
    for layer in model.decoder.layers:
        fully_shard(layer).set_gradient_divide_factor(1.0)
    assert len({isinstance(p, DTensor) for p in model.parameters()}) == 2
    return model


def over_processes(training: Any, expected: Any) -> None:
    with connect("cpu", shard=True) as world:
        own = [names[world.rank] for names in OWN]
        for parallel in ({}, {"replicas": 2}):
            check(step(training, world, training.lay(world, training.model(), **parallel), own), expected)
        check(step(training, world, partly_sharded(training.model()), own), expected)


def test_two_processes_clip_as_one(training: Any, expected: Any, run_processes: Callable[..., Any]) -> None:
    run_processes(lambda: over_processes(training, expected))


def test_a_norm_of_the_own_shards_is_noticed(
    training: Any, expected: Any, run_processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim_module, "sharded_dims", lambda placements: [])
    with pytest.raises(AssertionError):
        run_processes(lambda: over_processes(training, expected))

"""A model sharded over two processes has the loss and the gradients of the same model in one: FSDP2 and HSDP."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from medmo_recipes.settings.run_config import ConfigError
from medmo_recipes.training.distributed import sharding
from medmo_recipes.training.distributed.world import World, connect

Gradients = dict[str, Tensor]
OWN = (("image", "text"), ("other image", "other text"))
"""Batches of each process."""


def check(training: Any, same: Callable[..., None], settings: dict[str, Any], change: Any = None) -> None:
    """Compare a sharded model with one process; called in every process."""
    batches = training.batches()
    expected = training.gradients(training.model(), [batches[name] for names in OWN for name in names])
    with connect("cpu", shard=True) as world:
        for parallel in ({}, {"replicas": 2}):
            model = training.lay(world, training.model(), settings, **parallel)
            if change is not None:
                change(model)
            same(training.gradients(model, [batches[name] for name in OWN[world.rank]], world), expected)


@pytest.mark.parametrize("recompute", ["nothing", "selected"])
def test_two_processes_equal_one(
    training: Any, same_gradients: Any, run_processes: Callable[..., Any], recompute: str
) -> None:
    settings = {"recompute_text": recompute, "recompute_vision": recompute}
    run_processes(lambda: check(training, same_gradients, settings))


def test_compiled_and_recomputed_blocks_can_be_sharded(
    training: Any, same_gradients: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process, whose blocks are gathered and let go as among many."""
    monkeypatch.setattr(sharding, "set_forward", partial(sharding.set_forward, backend="eager"))
    batches = list(training.batches().values())[2:]  # of text: compiling takes seconds
    with connect("cpu", shard=True) as world:
        model = training.lay(world, training.model(), {"compile": True, "recompute_text": "all"})
        same_gradients(training.gradients(model, batches, world), training.gradients(training.model(), batches))


def test_bfloat16_products_keep_fp32_weights_and_sums(training: Any, run_processes: Callable[..., Any]) -> None:
    """parallel.compute_dtype: two processes equal one that multiplies in bfloat16 too, up to the order of sums."""
    batches = training.batches()

    def gradients(world: World, own: list[str]) -> Gradients:
        model = training.lay(world, training.model(dtype=torch.float32), compute_dtype="bfloat16")
        found = training.gradients(model, [batches[name] for name in own], world)
        assert {p.dtype for p in model.parameters()} == {g.dtype for n, g in found.items() if n != "loss"}
        assert found["model.language_model.norm.weight"].dtype == torch.float32
        return found

    def both() -> Gradients:
        with connect("cpu", shard=True) as world:
            return gradients(world, list(OWN[world.rank]))

    with connect("cpu", shard=True) as world:
        expected = gradients(world, [name for names in OWN for name in names])
    for found in run_processes(both):
        assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-6)
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_averaging_instead_of_adding_is_noticed(
    training: Any, same_gradients: Any, run_processes: Callable[..., Any]
) -> None:
    def average(model: Any) -> None:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(2.0)

    with pytest.raises(AssertionError):
        run_processes(lambda: check(training, same_gradients, {}, average))


def test_replicas_must_divide_the_processes(training: Any) -> None:
    with connect("cpu", shard=True) as world, pytest.raises(ConfigError, match="replicas=3: 1 processes do not divide"):
        training.lay(world, training.model(), replicas=3)

"""Where one process has no image, or none has, a sharded vision tower neither fails nor waits, and gradients are exact.

Three ways: a frozen tower stays out of sharding; a tower that trains is one unit that every process gathers; a process
without an image passes a blank one. The first two do no arithmetic where there is no image.
"""

import faulthandler
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from medmo_recipes.training.distributed import sharding
from medmo_recipes.training.distributed.world import World, connect

OWN = (("image", "text"), ("text", "other text"), ("other text", "other image"))
"""Batches of both processes, one entry per pass: one of them has no image, or neither has."""
CASES: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = (
    ({}, ()),
    ({}, ("encoder", "projector")),
    ({}, ("encoder",)),
    ({}, ("encoder", "decoder")),
    ({"replicas": 2}, ()),
    ({"blank_images": True}, ()),
    ({"blank_images": True}, ("encoder", "projector")),
)
"""Settings of parallel, and what is frozen."""


def calls_of(module: nn.Module) -> list[int]:
    """Return a list that grows by one with every call of a module."""
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def check(training: Any, same: Callable[..., None], world: World, frozen: tuple[str, ...], **parallel: Any) -> None:
    """Compare two processes with one, pass by pass; called in every process."""
    batches = training.batches()
    alone = training.model(frozen=frozen)
    model = training.lay(world, training.model(frozen=frozen), **parallel)
    runs = calls_of(model.encoder.blocks[0])
    for names in OWN:
        expected = training.gradients(alone, [batches[name] for name in names])
        same(training.gradients(model, [batches[names[world.rank]]], world), expected)
    with torch.no_grad():  # measuring between steps, then training on
        model.loss(batches[OWN[0][world.rank]])
    same(training.gradients(model, [batches[OWN[0][world.rank]]], world),
         training.gradients(alone, [batches[name] for name in OWN[0]]))  # fmt: skip
    passed = [*OWN, OWN[0], OWN[0]]  # and no arithmetic in vain
    shown = sum("image" in names[world.rank] for names in passed)
    assert len(runs) == (len(passed) if parallel.get("blank_images") else shown)


def test_a_process_without_an_image(training: Any, same_gradients: Any, run_processes: Callable[..., Any]) -> None:
    def both() -> None:
        with connect("cpu", shard=True) as world:
            for parallel, frozen in CASES:
                check(training, same_gradients, world, frozen, **parallel)

    run_processes(both)


def test_older_torch_passes_blank_images_and_says_so(
    training: Any,
    same_gradients: Any,
    run_processes: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Torch 2.11 cannot sum gradients that only some processes have."""
    if hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        monkeypatch.delattr(FSDPModule, "set_reduce_scatter_unused_params")

    def both() -> tuple[bool, bool]:
        with connect("cpu", shard=True) as world:
            trains = training.lay(world, training.model())
            batches = training.batches()
            expected = training.gradients(training.model(), [batches[name] for name in OWN[0]])
            same_gradients(training.gradients(trains, [batches[OWN[0][world.rank]]], world), expected)
            frozen = training.lay(world, training.model(frozen=("encoder", "projector")))
            return trains.without_images is not None, isinstance(frozen.encoder.pos_embed.weight, DTensor)

    assert run_processes(both) == [(True, False), (True, False)]
    assert capfd.readouterr().err.count("a process without an image encodes a blank one") == 1


def test_naive_sharding_of_every_block_is_noticed(
    training: Any, same_gradients: Any, run_processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def naive(model: Any, parallel: Any, world: Any, mesh: Any, policy: Any) -> set[nn.Parameter]:
        for block in model.encoder.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        return set()

    def both() -> None:
        faulthandler.disable()  # gloo may abort, which is reported already
        with connect("cpu", shard=True, timeout_s=2) as world:
            check(training, same_gradients, world, ())

    monkeypatch.setattr(sharding, "_shard_tower", naive)
    with pytest.raises((AssertionError, RuntimeError, TimeoutError)):
        run_processes(both, timeout_s=6)

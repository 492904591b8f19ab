"""Under mixed precision weights, rotary tables and gradient sums stay fp32, in every part of the model."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from medmo_core.modules.blocks import blocks_of
from medmo_recipes.training.distributed import sharding
from medmo_recipes.training.distributed.world import connect

FP32, BF16 = torch.float32, torch.bfloat16


def seen_by_blocks(model: Any) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Return sets that fill with the types of activations and of tables that blocks are given."""
    activations: set[torch.dtype] = set()
    tables: set[torch.dtype] = set()

    def look(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        x, _, table, *_ = arguments
        activations.add(x.dtype)
        tables.update(part.dtype for part in table)

    for block in blocks_of(model):
        block.register_forward_pre_hook(look)
    return activations, tables


def reduce_types(model: nn.Module) -> set[torch.dtype | None]:
    units: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    return {unit._get_fsdp_state()._mp_policy.reduce_dtype for unit in units}


def check(training: Any, weights: torch.dtype, compute: str, frozen: tuple[str, ...], **parallel: Any) -> None:
    batch = training.batches()["other image"]
    with connect("cpu", shard=True) as world:
        model = training.model(dtype=weights, frozen=frozen)
        training.lay(world, model, compute_dtype=compute, **parallel)
        activations, tables = seen_by_blocks(model)
        found = training.gradients(model, [batch], world)
        assert activations == {BF16}
        assert tables == {FP32}
        assert reduce_types(model) == {FP32}
        assert {p.dtype for p in model.parameters()} == {weights}
        expected = training.gradients(training.model(dtype=FP32, frozen=frozen), [batch])
        assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=2e-3)
        for name in found.keys() - {"loss"}:
            gap: Tensor = found[name].float() - expected[name]
            assert found[name].dtype == weights
            assert gap.norm() <= 0.06 * expected[name].norm(), name


@pytest.mark.parametrize("parallel", [{}, {"blank_images": True}], ids=str)
@pytest.mark.parametrize("frozen", [(), ("encoder",), ("encoder", "projector")], ids=str)
def test_fp32_weights_and_bfloat16_products(training: Any, frozen: tuple[str, ...], parallel: dict[str, bool]) -> None:
    check(training, FP32, "bfloat16", frozen, **parallel)


def test_bfloat16_weights(training: Any) -> None:
    check(training, BF16, "same", ())


def test_tables_cast_at_shard_boundaries_are_noticed(training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = sharding.MixedPrecisionPolicy
    monkeypatch.setattr(
        sharding, "MixedPrecisionPolicy", lambda **given: policy(**{**given, "cast_forward_inputs": True})
    )
    with pytest.raises(AssertionError):
        check(training, FP32, "bfloat16", ())


def test_a_part_that_sums_otherwise_is_noticed(training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_tower, policy = sharding._shard_tower, sharding.MixedPrecisionPolicy

    def own_policy(model: Any, parallel: Any, world: Any, mesh: Any, _: Any) -> Any:
        return shard_tower(model, parallel, world, mesh, policy(param_dtype=BF16, cast_forward_inputs=False))

    monkeypatch.setattr(sharding, "_shard_tower", own_policy)
    with pytest.raises(AssertionError):
        check(training, FP32, "bfloat16", ())

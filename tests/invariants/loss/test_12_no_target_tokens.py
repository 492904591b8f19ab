"""A process without a token to learn contributes zero, not NaN, and leaves the divisor of the others alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from medmo_core.batch import IGNORE_INDEX, Batch
from medmo_recipes.training.distributed.shards import whole_tensors
from medmo_recipes.training.distributed.world import World, connect
from medmo_recipes.training.monitoring.flops import BatchWork

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def unlearned(batch: Batch) -> Batch:
    assert batch.labels is not None
    return replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX))


def step(training: Any, world: World, batches: list[Batch], *, shard: bool = False) -> tuple[float, dict[str, Tensor]]:
    model = training.lay(world, training.model()) if shard else training.model()
    result = training.step(world, model, training.optimizer(model), batches, 0)
    return result.loss, whole_tensors(model, world)


@pytest.fixture(scope="module")
def expected(training: Any) -> tuple[float, dict[str, Tensor]]:
    """The documents that are learned, alone."""
    return step(training, ALONE, [training.batches()["image"]])


def check(found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    for name, weight in found[1].items():
        torch.testing.assert_close(weight, expected[1][name], rtol=1e-7, atol=1e-10, msg=name)


def test_a_batch_without_targets_changes_nothing(training: Any, expected: Any) -> None:
    batches = training.batches()
    check(step(training, ALONE, [unlearned(batches["other image"]), batches["image"]]), expected)


def test_a_process_without_targets_changes_nothing(
    training: Any, expected: Any, run_processes: Callable[..., Any]
) -> None:
    batches = training.batches()

    def both() -> None:
        with connect("cpu", shard=True) as world:
            for idle in (unlearned(batches["other image"]), unlearned(batches["text"])):
                own = [idle] if world.rank else [batches["image"]]
                for shard in (False, True):
                    check(step(training, world, own, shard=shard), expected)
            check(step(training, world, [] if world.rank else own), expected)  # with copies it may have no batch at all

    run_processes(both)


def test_no_target_anywhere_is_an_error(training: Any) -> None:
    with pytest.raises(ValueError, match="no document of this step has a token to learn"):
        step(training, ALONE, [unlearned(batch) for batch in training.batches().values()])


def test_counting_all_tokens_is_noticed(training: Any, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A divisor that counts what is not learned makes the idle documents weigh."""
    work_of = BatchWork.of

    def count_all(batch: Batch, model: Any) -> Any:
        return replace(work_of(batch, model), learned=batch.num_tokens)

    monkeypatch.setattr(BatchWork, "of", staticmethod(count_all))
    with pytest.raises(AssertionError):
        test_a_batch_without_targets_changes_nothing(training, expected)

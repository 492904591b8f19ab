"""Invariant 20: over all processes and workers every sample is seen once per epoch, by documents and by tokens, and
sources are drawn by their weights to within binomial error.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from functools import cache

import pytest
import torch

from medmo_core.batch import PatchSpec
from medmo_core.data.processor import Processor
from medmo_core.data.records.sample import Answer, Sample
from medmo_core.data.sources.mixture import Mixture
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.profile import QWEN3_VL
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.loading.loader import Loader
from medmo_recipes.training.loading.packer import Packer
from medmo_recipes.training.loading.plan import TokenBudget
from medmo_recipes.training.loading.skipped import SkippedSamples

SIZE = 90
"""Samples of an epoch."""
SETUPS = [(1, 0), (2, 0), (5, 0), (2, 1)]
"""Processes, and workers of each."""
BUDGET = TokenBudget(tokens_per_batch=160, batches_per_step=3, pack_buffer=12)
embedded = cache(Tokenizer.embedded)


class Texts:
    """Texts of many lengths; the id of a sample holds its index, and a random number of the draw."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.root, self.size = name, None, size

    def __len__(self) -> int:
        return self.size

    def get(self, index: int, rng: random.Random) -> Sample:
        turn = {"role": "user", "content": "scan " * (1 + index * 11 % 40)}
        return Sample(f"{self.name}:{index}/{rng.random()}", "text", messages=(turn,), answer=Answer("open", "CT"))


def mixture(**weights: float) -> Mixture:
    return Mixture({name: (Texts(name, SIZE), weight) for name, weight in weights.items()}, seed=1)


def handed_out(
    mixed: Mixture, processes: int, workers: int, by_tokens: TokenBudget | None, num_steps: int
) -> list[str]:
    """Return the ids of all documents of some steps, over all processes."""
    processor = Processor(embedded(), {"qwen3_vl": PatchSpec(16, 2)}, QWEN3_VL, min_pixels=1024, max_pixels=4096)
    seen: list[str] = []
    for rank in range(processes):
        loader = Loader(
            mixed.draw,
            processor,
            world=World(rank, processes, torch.device("cpu")),
            docs_per_step=18,
            micro_batch=4,
            skipped=SkippedSamples(None),
            by_tokens=by_tokens,
            num_workers=workers,
        )
        seen += [name for step in range(num_steps) for batch in loader.step(step) for name in batch.sample_ids]
        loader.close()
    return seen


def check_each_once(mixed: Mixture, seen: Sequence[str]) -> None:
    """Check that the samples of the first epoch are all of the source's, and that each was handed out once."""
    epoch = [mixed.draw(number).id for number in range(SIZE)]
    assert {name.split("/")[0] for name in epoch} == {f"a:{index}" for index in range(SIZE)}
    counts = Counter(seen)
    assert [counts[name] for name in epoch] == [1] * SIZE


def check_weights(seen: Sequence[str], weights: dict[str, float]) -> None:
    """Check the share of each source against three standard deviations of independent draws."""
    counts = Counter(name.split(":")[0] for name in seen)
    for source, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(counts[source] - len(seen) * share) <= 3 * math.sqrt(len(seen) * share * (1 - share)), source


@pytest.mark.parametrize(("processes", "workers"), SETUPS)
def test_by_documents_an_epoch_holds_every_sample_once(processes: int, workers: int) -> None:
    mixed = mixture(a=1.0)
    check_each_once(mixed, handed_out(mixed, processes, workers, None, SIZE // 18))


@pytest.mark.parametrize(("processes", "workers"), SETUPS)
def test_by_tokens_an_epoch_holds_every_sample_once(processes: int, workers: int) -> None:
    """Some samples of the epoch wait while the next has begun: enough steps for all of them to come."""
    mixed = mixture(a=1.0)
    check_each_once(mixed, handed_out(mixed, processes, workers, BUDGET, 16))


@pytest.mark.parametrize("by_tokens", [None, BUDGET], ids=["documents", "tokens"])
def test_sources_keep_their_weights(by_tokens: TokenBudget | None) -> None:
    weights = {"a": 5.0, "b": 2.0, "c": 0.5}
    seen = handed_out(mixture(**weights), 2, 0, by_tokens, 60)
    assert len(seen) > 300
    check_weights(seen, weights)
    with pytest.raises(AssertionError):
        check_weights(seen, {"a": 2.0, "b": 5.0, "c": 0.5})


def test_processes_that_do_the_same_work_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "share", lambda self, total: range(0, total, self.size))
    mixed = mixture(a=1.0)
    for by_tokens in (None, BUDGET):
        with pytest.raises(AssertionError):
            check_each_once(mixed, handed_out(mixed, 2, 0, by_tokens, 16))


def test_a_packer_that_loses_documents_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Packer.take
    monkeypatch.setattr(Packer, "take", lambda self: take(self)[1:])
    mixed = mixture(a=1.0)
    with pytest.raises(AssertionError):
        check_each_once(mixed, handed_out(mixed, 1, 0, BUDGET, 16))

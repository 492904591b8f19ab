"""Rows that are refilled: the same samples as all at once, prompts run once and when they are due, few rows idle."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from medmo_core.batch import Batch
from medmo_core.generation import kv_cache
from medmo_core.generation.kv_cache import KVCache
from medmo_core.models import PRESETS, Generation, MedMO

CONFIG = PRESETS["debug"]
LENGTHS = [9, 14, 6, 11, 4, 8]
STOPS = range(60)
SETTINGS = {"max_new_tokens": 14, "temperature": 1.0, "num_generations": 3, "stop_token_ids": STOPS, "seed": 3}


def document(index: int, name: str) -> Batch:
    length = LENGTHS[index]
    ids = torch.randint(100, 300, (length,), generator=torch.Generator().manual_seed(index))
    ends = torch.tensor([0, length], dtype=torch.int32)
    return Batch(ids, None, torch.arange(length).expand(3, -1), ends, sample_ids=(name,))


def join(parts: list[Batch]) -> Batch:
    lengths = torch.tensor([0, *(part.num_tokens for part in parts)])
    return Batch(
        torch.cat([part.input_ids for part in parts]),
        None,
        torch.cat([part.position_ids for part in parts], dim=1),
        lengths.cumsum(0, dtype=torch.int32),
        sample_ids=tuple(part.sample_ids[0] for part in parts),
    )


@dataclass
class Documents:
    """Prompts that write down when they were asked for."""

    names: list[str]
    asked: list[range]

    def batch(self, numbers: range) -> Batch:
        self.asked.append(numbers)
        return join([document(number, self.names[number]) for number in numbers])


def documents(names: list[str] | None = None) -> Documents:
    return Documents([f"d{index}" for index in range(len(LENGTHS))] if names is None else names, [])


@pytest.fixture(scope="module")
def model() -> MedMO:
    torch.manual_seed(0)
    return MedMO.from_config(CONFIG, initializer_range=0.15).double().eval()


@pytest.fixture(scope="module")
def at_once(model: MedMO) -> list[list[Generation]]:
    found = model.generate(documents().batch(range(len(LENGTHS))), **SETTINGS)
    assert len({len(g.tokens) for group in found for g in group}) > 5, "the answers must end at different steps"
    return found


def assert_same(found: list[list[Generation]], expected: list[list[Generation]]) -> None:
    for group, other in zip(found, expected, strict=True):
        for one, two in zip(group, other, strict=True):
            assert replace(one, logps=[]) == replace(two, logps=[])
            assert one.logps == pytest.approx(two.logps, abs=1e-11)


@pytest.mark.parametrize("share_from", [1, 10**9], ids=["shared", "copied"])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 7, 100])
def test_refilled_rows_sample_what_all_at_once_do(
    model: MedMO,
    at_once: list[list[Generation]],
    num_rows: int,
    share_from: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the prompts were run all together, and wait for rows."""
    monkeypatch.setattr(kv_cache, "SHARE_FROM", share_from)
    monkeypatch.setattr(kv_cache, "GROWTH", 3)
    prompts = documents()
    assert_same(model.generate(prompts, num_rows=num_rows, **SETTINGS), at_once)
    assert [number for numbers in prompts.asked for number in numbers] == list(range(len(LENGTHS))), "once each"
    assert_same(model.generate(documents().batch(range(len(LENGTHS))), num_rows=num_rows, **SETTINGS), at_once)


@pytest.fixture
def watch(model: MedMO, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[int, int]]]:
    """Return a function that gives the rows and the stored prompts of every step since the start."""
    seen: list[tuple[int, int]] = []
    look_back = KVCache.look_back

    def counting(self: KVCache, layer: int, q: torch.Tensor) -> torch.Tensor:
        if layer == 0:
            seen.append((q.shape[0], self.prompts[0][0].shape[0]))
        return look_back(self, layer, q)

    monkeypatch.setattr(KVCache, "look_back", counting)
    return lambda: seen


def test_prompts_are_run_when_due_and_dropped_when_done(
    model: MedMO, monkeypatch: pytest.MonkeyPatch, watch: Callable[[], list[tuple[int, int]]]
) -> None:
    monkeypatch.setattr(kv_cache, "SHARE_FROM", 1)
    prompts = documents()
    model.generate(prompts, num_rows=4, **SETTINGS)
    assert prompts.asked[0] == range(2), "four rows need two prompts of three answers"
    assert len(prompts.asked) > 2
    assert max(rows for rows, _ in watch()) <= 4
    assert max(held for _, held in watch()) <= 4 < len(LENGTHS)


def test_refilling_takes_fewer_steps_than_fixed_batches(
    model: MedMO, watch: Callable[[], list[tuple[int, int]]]
) -> None:
    model.generate(documents(), num_rows=6, **SETTINGS)
    refilled = len(watch())
    for start in range(0, len(LENGTHS), 2):
        model.generate(documents().batch(range(start, start + 2)), **SETTINGS)
    assert refilled < 0.9 * (len(watch()) - refilled)


def test_repeated_names_are_told_apart_in_whatever_portions(model: MedMO) -> None:
    names = ["same", "other", "same", "same", "other", "last"]
    settings = {**SETTINGS, "num_generations": 1}
    found = model.generate(documents(names), num_rows=1, **settings)
    assert_same(found, model.generate(documents(names).batch(range(len(names))), **settings))


def test_answers_of_one_token_go_through(model: MedMO) -> None:
    """Rows that end with their first token make room for others at once."""
    settings = {**SETTINGS, "max_new_tokens": 1}
    found = model.generate(documents(), num_rows=2, **settings)
    assert all(len(generation.logps) == 1 for group in found for generation in group)
    assert_same(found, model.generate(documents().batch(range(len(LENGTHS))), **settings))


def test_no_prompts_and_no_rows(model: MedMO) -> None:
    assert model.generate(documents([]), num_rows=4, **SETTINGS) == []
    with pytest.raises(ValueError, match="num_rows is 0, expected at least 1"):
        model.generate(documents(), num_rows=0, **SETTINGS)

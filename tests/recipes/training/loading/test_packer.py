"""The packer: every document once, no pack over the budget, nobody waits for ever, and a state that goes on exactly."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_recipes.training.loading.packer import Packer

LENGTHS = st.lists(st.integers(1, 100), max_size=120)


def run(packer: Packer, lengths: list[int], start: int = 0) -> list[list[int]]:
    """All packs of documents numbered from `start`, the buffer kept full until they run out."""
    packs = []
    for number, length in enumerate(lengths[start:], start):
        packer.add(number, length)
        if packer.is_full:
            packs.append(packer.take())
    while packer.state()["waiting"]:
        packs.append(packer.take())
    return packs


def mixed_lengths(count: int, seed: int) -> list[int]:
    """Lengths of documents: log-normal texts, most with one to three images of 64 to 1,600 tokens each."""
    rng = random.Random(seed)
    lengths = []
    for _ in range(count):
        images = rng.choice((0, 0, 1, 1, 1, 3)) if rng.random() < 0.75 else 0
        shown = sum(rng.choice((64, 144, 256, 576, 1024, 1600)) for _ in range(images))
        lengths.append(shown + max(8, min(2048, int(rng.lognormvariate(5.0, 0.9)))))
    return lengths


def check(packs: list[list[int]], lengths: list[int], budget: int) -> None:
    assert sorted(number for pack in packs for number in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[number] for number in pack) <= budget for pack in packs)


@given(LENGTHS, st.integers(100, 400), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_every_document_is_packed_once_and_no_pack_is_over_the_budget(
    lengths: list[int], budget: int, size: int
) -> None:
    packer = Packer(budget, size)
    packs = run(packer, lengths)
    check(packs, lengths, budget)
    assert packer.take() == []
    assert (packer.num_packs, packer.num_tokens) == (len(packs), sum(lengths))


def test_a_document_packed_twice_or_lost_would_be_noticed() -> None:
    lengths = [30, 40, 50]
    for wrong in ([[0, 1], [1, 2]], [[0, 1]], [[0, 1, 2]]):
        with pytest.raises(AssertionError):
            check(wrong, lengths, budget=100)


@given(LENGTHS, st.integers(100, 400), st.integers(1, 40), st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_a_restored_packer_goes_on_exactly(lengths: list[int], budget: int, size: int, stop: int) -> None:
    """Stop after any document, through JSON, into a new packer."""
    whole, first = Packer(budget, size), Packer(budget, size)
    expected = run(whole, lengths)
    packs = []
    stop = min(stop, len(lengths))
    for number, length in enumerate(lengths[:stop]):
        first.add(number, length)
        if first.is_full:
            packs.append(first.take())
    second = Packer(budget, size)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    assert packs + run(second, lengths, stop) == expected
    assert (second.num_packs, second.num_tokens) == (whole.num_packs, whole.num_tokens)


@given(LENGTHS.filter(bool), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_a_pack_begins_with_the_document_that_waits_longest(lengths: list[int], size: int) -> None:
    """So none waits for more packs than the buffer holds documents."""
    packer = Packer(100, size)
    for number, length in enumerate(lengths):
        packer.add(number, length)
        if packer.is_full:
            oldest = packer.state()["waiting"][0][0]
            assert packer.take()[0] == oldest


def test_the_longest_that_fits_comes_first_and_of_equals_the_oldest() -> None:
    packer = Packer(100, 8)
    for number, length in enumerate([10, 60, 50, 50, 40, 30]):
        packer.add(number, length)
    assert [packer.take() for _ in range(4)] == [[0, 1, 5], [2, 3], [4], []]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", [1, 64, 512])
def test_packs_of_a_mixed_set_are_full(seed: int, size: int) -> None:
    """10,000 lengths, a budget of four times the longest: at least 97 % of the tokens of all packs are used."""
    lengths = mixed_lengths(10_000, seed)
    packer = Packer(4 * max(lengths), size)
    packs = run(packer, lengths)
    check(packs, lengths, packer.budget)
    assert packer.efficiency == sum(lengths) / (len(packs) * packer.budget)
    assert packer.efficiency > 0.97


def test_what_cannot_be_packed_is_refused() -> None:
    packer = Packer(100, 4)
    packer.add(7, 100)
    for number, length, message in (
        (8, 101, "document 8 has 101 tokens; a pack holds 1 to 100"),
        (9, 0, "document 9 has 0 tokens"),
        (7, 5, "document 7 is waiting already"),
    ):
        with pytest.raises(ValueError, match=message):
            packer.add(number, length)
    with pytest.raises(ValueError, match="budget and a buffer of 1 or more, got 0 and 4"):
        Packer(0, 4)
    with pytest.raises(ValueError, match="document 7 has 100 tokens; a pack holds 1 to 99"):
        Packer(99, 4).restore(packer.state())
    assert packer.take() == [7]

"""Coordinates as distributions: their shares by enumeration, their codes in a chat, and what they add to the loss."""

import math
import random
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medmo_core.batch import PatchSpec
from medmo_core.batch.coordinates import NO_COORDINATE, Coordinates
from medmo_core.data.coordinates import spread_numbers
from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.data.processor import Processor
from medmo_core.data.records.read import sample_from_json
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.datasets.embedded.dialogues import Dialogues
from medmo_core.inference.kit import Kit
from medmo_core.losses.soft_targets import softened
from medmo_core.models.targets import labelled_rows, learned_positions
from medmo_core.profile import MEDMO_CANVAS768, QWEN3_VL, QWEN3_VL_TENS, CheckpointProfile
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.model.kit import load_kit

embedded = cache(Tokenizer.embedded)
IMAGE = {"path": "a.png", "width": 128, "height": 96}
BOX = {"label": "nodule", "xyxy": [32, 24, 64, 48]}


def likely(number: int, place: int, spread: float, step: int) -> dict[str, float]:
    """Return next digit -> its share, over every number that begins as `number` does up to `place`."""
    found: dict[str, float] = {}
    for other in range(0, 1001, step):
        if str(other)[:place] == str(number)[:place] and len(str(other)) > place:
            weight = math.exp(-((other - number) ** 2) / (2 * spread**2))
            found[str(other)[place]] = found.get(str(other)[place], 0.0) + weight
    return {digit: weight / sum(found.values()) for digit, weight in found.items()}


def shares_of(coordinates: Coordinates, tokenizer: Tokenizer, number: int, place: int) -> dict[str, float]:
    shares = coordinates.shares[number * coordinates.places + place].tolist()
    words = [tokenizer.decode([token]) for token in coordinates.tokens.tolist()]
    return {word: share for word, share in zip(words, shares, strict=True) if share}


@pytest.mark.parametrize(("profile", "spread"), [(QWEN3_VL, 3.0), (QWEN3_VL, 40.0), (QWEN3_VL_TENS, 25.0)])
def test_shares_are_those_of_all_numbers_that_begin_alike(
    profile: CheckpointProfile, spread: float, digits: Tokenizer
) -> None:
    coordinates = spread_numbers(digits, profile, spread)
    assert coordinates.places == 4 and len(coordinates.tokens) == 10
    for number in (0, 10, 90, 100, 370, 990, 1000):
        for place in range(len(str(number))):
            expected = likely(number, place, spread, profile.step)
            found = shares_of(coordinates, digits, number, place)
            assert sum(found.values()) == pytest.approx(1.0, abs=1e-6)
            for digit in "0123456789":
                assert found.get(digit, 0.0) == pytest.approx(expected.get(digit, 0.0), abs=1e-6)
            own = coordinates.own[number * coordinates.places + place]
            assert digits.decode([int(coordinates.tokens[own])]) == str(number)[place]


def test_a_number_of_one_token_is_spread_over_its_neighbours() -> None:
    coordinates = spread_numbers(embedded(), QWEN3_VL_TENS, 20.0)
    assert (coordinates.places, len(coordinates.tokens)) == (1, 101)
    shares = shares_of(coordinates, embedded(), 370, 0)
    assert max(shares, key=lambda word: shares[word]) == "370"
    assert shares["360"] == pytest.approx(shares["380"])
    assert shares["350"] == pytest.approx(shares["370"] * math.exp(-0.5))
    assert shares_of(coordinates, embedded(), 0, 0)["0"] > shares["370"]  # nothing lies below it


def test_a_narrow_spread_is_the_number_alone(digits: Tokenizer) -> None:
    coordinates = spread_numbers(digits, QWEN3_VL, 1e-3)
    assert shares_of(coordinates, digits, 437, 1) == {"3": 1.0}


def test_other_frames_are_refused(digits: Tokenizer) -> None:
    with pytest.raises(ValueError, match="frame 'pixel', expected 'norm1000'.*coordinate_spread=0"):
        spread_numbers(digits, MEDMO_CANVAS768, 10.0)


def encoded(tokenizer: Tokenizer, profile: CheckpointProfile = QWEN3_VL, **fields: Any) -> Document:
    sample = sample_from_json({"id": "s", "images": [IMAGE], "question": "Where?", **fields})
    return Processor(
        tokenizer,
        {"qwen3_vl": PatchSpec(patch_size=16, merge_size=2, temporal_patch_size=2)},
        profile,
        min_pixels=32 * 32,
        max_pixels=256 * 256,
        coordinates=spread_numbers(tokenizer, profile, 20.0),
    ).encode(sample, pixels=False)


@pytest.mark.parametrize("by_digits", [True, False])
def test_codes_stand_where_coordinates_are_said(by_digits: bool, digits: Tokenizer) -> None:
    tokenizer = digits if by_digits else embedded()
    document = encoded(tokenizer, boxes=[{**BOX, "label": "vertebra T12"}])
    assert document.coordinates is not None
    places = 4 if by_digits else spread_numbers(tokenizer, QWEN3_VL, 20.0).places
    said = np.flatnonzero(document.coordinates != NO_COORDINATE)
    codes = document.coordinates[said]
    assert "".join(tokenizer.decode([int(document.input_ids[t])]) for t in said) == "250250500500"
    assert (codes // places).tolist() == ([250] * 6 + [500] * 6 if by_digits else [250, 250, 500, 500])
    assert (codes % places).tolist() == ([0, 1, 2] * 4 if by_digits else [0] * 4)


@pytest.mark.parametrize(
    "fields",
    [
        {"boxes": [], "answer": {"type": "boxes"}},
        {"answer": "At [250, 250, 500, 500], I think."},
        {"boxes": [{**BOX, "label": "vertebra 12"}]},  # which numbers are coordinates is not known
    ],
)
def test_other_answers_have_no_codes(fields: Any) -> None:
    assert encoded(embedded(), **fields).coordinates is None


def test_what_is_added_makes_the_cross_entropy_one_with_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (5, 30))
    tokens, own = torch.tensor([3, 7, 8, 21]), torch.tensor([1, 0, 3, 2, 0])
    shares = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    shares /= shares.sum(1, keepdim=True)
    shares[4] = 0  # a row without a distribution
    whole = torch.zeros(5, 30, dtype=torch.float64)
    whole[:4, tokens] = shares[:4]
    whole[4, 11] = 1
    targets = torch.cat([tokens[own[:4]], torch.tensor([11])])
    hidden.requires_grad_()
    expected = -(whole * F.log_softmax(hidden @ weight.T, dim=1)).sum()
    (wanted,) = torch.autograd.grad(expected, hidden)
    found = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") + softened(hidden, weight, tokens, shares, own)
    (gradient,) = torch.autograd.grad(found, hidden)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)
    assert softened(hidden.float(), weight.float(), tokens, shares.float(), own).dtype == torch.float32


@pytest.fixture(scope="module")
def kit() -> Kit:
    change = {"model": {"dtype": "float64"}, "train": {"coordinate_spread": 30.0}}
    return load_kit(CONFIGS["debug_instruct"]().change(**change), "cpu")


@pytest.fixture(scope="module")
def items(kit: Kit) -> list[Document]:
    source, rng = Dialogues("train"), random.Random(3)
    return [item for index in (5, 400, 900) for item in kit.processor.encode_turns(source.get(index, rng))]


def test_the_model_minimises_it_however_documents_are_packed(kit: Kit, items: list[Document]) -> None:
    coordinates = kit.processor.coordinates
    assert coordinates is not None

    def measured(batch: Any) -> tuple[float, torch.Tensor]:
        kit.model.zero_grad()
        losses = kit.model.token_losses(batch, coordinates=coordinates)
        losses.total.backward()
        gradient = kit.model.head_weight.grad
        assert gradient is not None
        return losses.total.item(), gradient.clone()

    shared, gradient = measured(pack(items, share_prefixes=True))
    apart, expected = measured(pack(items))
    assert shared == pytest.approx(apart, rel=1e-9)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
    # Of all learned tokens exactly those with a code have a distribution.
    batch = pack(items, share_prefixes=True)
    assert batch.coordinates is not None
    rows, targets = labelled_rows(batch)
    codes = batch.coordinates[learned_positions(batch)]
    logits = kit.model.hidden_states(batch, rows) @ kit.model.head_weight.T
    whole = F.one_hot(targets, logits.shape[1]).double()
    said = (codes != NO_COORDINATE).nonzero().flatten().tolist()
    assert said
    for row in said:
        assert whole[row, coordinates.tokens[coordinates.own[codes[row]]]] == 1
        whole[row] = 0
        whole[row, coordinates.tokens] = coordinates.shares[codes[row]].double()
    assert -(whole * F.log_softmax(logits, dim=1)).sum().item() == pytest.approx(shared, rel=1e-6)


def test_without_codes_or_distributions_the_tokens_alone_count(kit: Kit, items: list[Document]) -> None:
    batch = pack(items)
    plain = kit.model.token_losses(batch)
    assert plain.total.item() == pytest.approx(plain.cross_entropy.sum().item())
    bare = pack([replace(item, coordinates=None) for item in items])
    assert bare.coordinates is None
    losses = kit.model.token_losses(bare, coordinates=kit.processor.coordinates)
    assert losses.total.item() == pytest.approx(plain.total.item())
    some = pack([replace(item, coordinates=None) if i % 2 else item for i, item in enumerate(items)])
    assert some.coordinates is not None and len(some.coordinates) == some.num_tokens

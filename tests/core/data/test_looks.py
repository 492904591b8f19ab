"""Where attention should be while an answer says boxes: from the text to shares of visual tokens."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from medmo_core.batch import Batch, PatchSpec
from medmo_core.batch.looks import Looks
from medmo_core.choices import Recompute
from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.data.processor import Processor
from medmo_core.data.records.read import sample_from_json
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.datasets.embedded.dialogues import Dialogues
from medmo_core.inference.kit import Kit
from medmo_core.models.looking import taught_layer
from medmo_core.models.targets import predicting_rows
from medmo_core.profile import MEDMO, QWEN3_VL, QWEN3_VL_TENS, CheckpointProfile
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.model.kit import load_kit

QWEN = PatchSpec(patch_size=16, merge_size=2, temporal_patch_size=2)
IMAGE = {"path": "a.png", "width": 128, "height": 96}
LEFT = {"label": "nodule", "xyxy": [32, 24, 64, 48]}
RIGHT = {"label": "cyst", "xyxy": [96, 0, 128, 96]}
embedded = cache(Tokenizer.embedded)


def encoded(
    profile: CheckpointProfile = QWEN3_VL,
    *,
    images: Any = (IMAGE,),
    tokenizer: Tokenizer | None = None,
    **fields: Any,
) -> Document:
    sample = sample_from_json({"id": "s", "images": list(images), "question": "Where?", **fields})
    options: dict[str, Any] = {"min_pixels": 32 * 32, "max_pixels": 256 * 256, "looks": True}
    processor = Processor(tokenizer or embedded(), {"qwen3_vl": QWEN}, profile, **options)
    return processor.encode(sample, pixels=False)


def looks_of(document: Document) -> Looks:
    assert document.looks is not None
    return document.looks


def words(document: Document, tokenizer: Tokenizer | None = None) -> list[str]:
    return [(tokenizer or embedded()).decode([int(document.input_ids[t])]) for t in looks_of(document).tokens]


@pytest.mark.parametrize("profile", [QWEN3_VL, QWEN3_VL_TENS, MEDMO], ids=["json", "tens", "medmo"])
def test_an_answer_looks_at_its_box_and_each_coordinate_at_its_edge(
    profile: CheckpointProfile, digits: Tokenizer
) -> None:
    document = encoded(profile, boxes=[LEFT], tokenizer=digits)
    looks = looks_of(document)
    first = int(np.flatnonzero(np.asarray(document.labels) >= 0)[0])
    assert int(looks.tokens[0]) == first and looks.weights[0] == 1
    assert words(document, digits)[1:] == ["2", "5", "2", "5", "5", "0", "5", "0"]  # of 250, 250, 500, 500
    assert looks.weights[1:].sum().item() == pytest.approx(1.0)
    assert looks.look_of.tolist() == list(range(9))
    # 4 x 3 visual tokens: the box fills the second column, and rows 0.75 to 1.5.
    whole, left, top, right, bottom = (looks.boxes[i].tolist() for i in (0, 1, 3, 5, 7))
    assert whole == pytest.approx([0.25, 0.25, 0.5, 0.5])
    assert left == right == pytest.approx([0.25, 0.25, 0.5, 0.5])
    assert top == pytest.approx([0.25, 0.25, 0.5, 1 / 3]) and bottom == pytest.approx([0.25, 1 / 3, 0.5, 0.5])


def test_a_coordinate_of_one_token_looks_while_it_is_said(digits: Tokenizer) -> None:
    document, by_digits = encoded(boxes=[LEFT]), encoded(boxes=[LEFT], tokenizer=digits)
    assert words(document)[1:] == ["250", "250", "500", "500"]
    looks, others = looks_of(document), looks_of(by_digits)
    assert looks.weights[1:].sum().item() == pytest.approx(1.0)
    assert torch.equal(looks.boxes, others.boxes[[0, 1, 3, 5, 7]])


def test_two_boxes_are_looked_at_together_and_then_each_at_its_edges() -> None:
    looks = looks_of(encoded(boxes=[LEFT, RIGHT]))
    assert looks.look_of[:2].tolist() == [0, 0]
    assert looks.boxes[1].tolist() == pytest.approx([0.75, 0, 1, 1])
    cover = looks.covers()
    assert cover[0].view(3, 4)[:, 3].tolist() == [1, 1, 1]
    assert cover[0].view(3, 4)[:, 1].tolist() == pytest.approx([0.25, 0.5, 0])
    assert cover[-1].view(3, 4).nonzero().tolist() == [[2, 3]]  # the lower edge of the second


def test_nothing_there_looks_at_nothing() -> None:
    looks = looks_of(encoded(boxes=[], answer={"type": "boxes"}))
    assert (len(looks.tokens), len(looks.boxes)) == (1, 0)
    assert not looks.covers().any()


@pytest.mark.parametrize("answer", ["yes", "The nodule is at [250, 250, 500, 500], I think.", "12, 13, 14, 15"])
def test_other_answers_have_no_looks(answer: str) -> None:
    assert encoded(answer=answer).looks is None


def test_a_number_in_a_label_leaves_only_the_look_at_the_whole() -> None:
    plain = words(encoded(boxes=[LEFT]))
    assert words(encoded(boxes=[{**LEFT, "label": "vertebra T12"}])) == plain  # part of a word
    assert words(encoded(boxes=[{**LEFT, "label": "vertebra 12"}])) == plain[:1]


def test_grammars_that_write_y_first_look_at_the_edges_they_name() -> None:
    tall = {"label": "nodule", "xyxy": [64, 0, 96, 96]}
    looks = looks_of(encoded(CheckpointProfile(grammar="medgemma_json"), boxes=[tall]))
    covers = [cover.view(3, 4).nonzero().tolist() for cover in looks.covers()[1:]]
    assert [[0, 2]] in covers and [[2, 2]] in covers
    assert covers[0] == [[0, 2]]  # the upper edge comes first


@pytest.mark.parametrize("grammar", ["medmo_box", "qwen3_vl_json", "medgemma_json"])
def test_edges_are_those_named_in_pixels_of_a_long_picture_too(grammar: str) -> None:
    profile = CheckpointProfile(grammar=grammar, frame="pixel")
    image, box = {**IMAGE, "width": 320, "height": 64}, {"label": "nodule", "xyxy": [64, 8, 128, 40]}
    document = encoded(profile, images=[image], boxes=[box])
    edges = looks_of(document).boxes[1:].tolist()
    left, top = [0.2, 0.125, 0.3, 0.625], [0.2, 0.125, 0.4, 0.5]
    order = (top, left) if grammar == "medgemma_json" else (left, top)
    assert edges[0] == pytest.approx(order[0]) and any(edge == pytest.approx(order[1]) for edge in edges)


def test_an_edge_between_two_cells_is_looked_at_in_the_box() -> None:
    """1.9999999998 of a cell, as a coordinate of the text comes back from pixels."""
    image = {**IMAGE, "width": 629, "height": 1118}
    sample = {"images": [image], "boxes": [{"label": "nodule", "xyxy": [402.56, 223.6, 547.23, 760.24]}]}
    covers = looks_of(encoded(QWEN3_VL_TENS, **sample)).covers()
    assert bool((covers.sum(-1) > 0).all())


def test_fractions_leave_only_the_look_at_the_whole() -> None:
    for label in ("nodule", "1 2 3 4"):
        assert len(words(encoded(CheckpointProfile(frame="unit"), boxes=[{**LEFT, "label": label}]))) == 1


def test_boxes_of_two_pictures_are_looked_at_where_they_lie() -> None:
    pair = ({**IMAGE}, {**IMAGE, "path": "b.png", "width": 64, "height": 64})
    old, new = {**LEFT, "image": 0}, {"label": "nodule", "xyxy": [32, 32, 64, 64], "image": 1}
    cover = looks_of(encoded(images=pair, boxes=[old, new])).covers()
    assert cover.shape[1] == 16
    assert cover[0].nonzero().flatten().tolist() == [1, 5, 15]


def test_covers_are_shares_of_cells() -> None:
    """Against a count of fine points in every cell."""
    rng = np.random.default_rng(0)
    grids = ((1, 3, 5), (2, 4, 2))
    low = rng.uniform(0, 0.7, (6, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.3, (6, 2))], axis=1)
    images = np.array([0, 1, 0, 1, 1, 0])
    looks = Looks(
        torch.arange(6), torch.ones(6), torch.arange(6), torch.tensor(boxes).float(), torch.tensor(images), grids, 0, 9
    )
    points = (np.arange(200) + 0.5) / 200
    for look, (box, image) in enumerate(zip(boxes, images, strict=True)):
        expected = []
        for i, (frames, rows, columns) in enumerate(grids):
            inside_x = [((x + points) / columns > box[0]) & ((x + points) / columns < box[2]) for x in range(columns)]
            inside_y = [((y + points) / rows > box[1]) & ((y + points) / rows < box[3]) for y in range(rows)]
            shares = [float(y.mean() * x.mean()) * (i == image) for y in inside_y for x in inside_x]
            expected += shares * frames
        assert looks.covers()[look].tolist() == pytest.approx(expected, abs=0.01)


@pytest.fixture(scope="module")
def kit() -> Kit:
    change = {"model": {"dtype": "float64"}, "train": {"attention_weight": 1.0}}
    return load_kit(CONFIGS["debug_instruct"]().change(**change), "cpu")


@pytest.fixture(scope="module")
def items(kit: Kit) -> list[Document]:
    source, rng = Dialogues("train"), random.Random(3)
    samples = [source.get(index, rng) for index in (5, 400, 900)]
    return [item for sample in samples for item in kit.processor.encode_turns(sample)]


def total(kit: Kit, batch: Batch) -> tuple[float, torch.Tensor]:
    kit.model.zero_grad()
    losses = kit.model.token_losses(batch, attention_weight=2.0)
    assert losses.attention is not None
    (losses.total - losses.cross_entropy.sum()).backward()
    assert losses.total.item() == pytest.approx((losses.cross_entropy.sum() + losses.attention).item())
    layer = taught_layer(len(kit.model.decoder.layers))
    gradient = kit.model.get_parameter(f"model.language_model.layers.{layer}.self_attn.k_proj.weight").grad
    assert gradient is not None
    return losses.attention.item(), gradient.clone()


def test_looks_are_the_same_however_documents_are_packed(kit: Kit, items: list[Document]) -> None:
    apart = [replace(i, patches={name: rows.copy() for name, rows in i.patches.items()}) for i in items]
    shared, gradient = total(kit, pack(items, share_prefixes=True))
    same_images, _ = total(kit, pack(items))
    one_by_one = sum(total(kit, pack([item]))[0] for item in items if item.looks is not None)
    separate, expected = total(kit, pack(apart))
    assert shared == pytest.approx(one_by_one, rel=1e-9)
    assert same_images == pytest.approx(one_by_one, rel=1e-9) and separate == pytest.approx(one_by_one, rel=1e-9)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
    assert gradient.abs().sum() > 0


def test_a_look_belongs_to_the_row_that_predicts_its_token(kit: Kit, items: list[Document]) -> None:
    batch = pack(items, share_prefixes=True)
    assert len(batch.looks) == 3 and batch.labels is not None
    for looks in batch.looks:
        assert bool((batch.labels[looks.tokens] >= 0).all())
        rows = predicting_rows(batch)[looks.tokens]
        assert bool(((rows >= looks.start) & (rows < looks.stop)).all())


def test_without_looks_or_weight_nothing_is_supervised(kit: Kit, items: list[Document]) -> None:
    plain = pack([replace(item, looks=None) for item in items])
    assert kit.model.token_losses(plain, attention_weight=2.0).attention is None
    assert kit.model.token_losses(pack(items)).attention is None


@pytest.mark.parametrize("recompute", ["all", "selected"])
def test_activations_computed_again_change_nothing(kit: Kit, items: list[Document], recompute: Recompute) -> None:
    batch = pack(items, share_prefixes=True)
    expected = total(kit, batch)
    kit.model.checkpoint_activations(recompute)
    try:
        loss, gradient = total(kit, batch)
    finally:
        kit.model.checkpoint_activations("nothing")
    assert loss == expected[0]
    torch.testing.assert_close(gradient, expected[1], rtol=1e-12, atol=0)

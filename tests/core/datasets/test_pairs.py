"""Pairs of views: every answer agrees with the masks of both views, and no pair crosses two splits."""

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from medmo_core.data.images.load import crop_pixels
from medmo_core.data.records.sample import ImageRef, Sample
from medmo_core.datasets.embedded import pairs as pairs_module
from medmo_core.datasets.embedded.facts import ImageFacts, load_facts, mask_of
from medmo_core.datasets.embedded.pairs import MAX_STEPS, Pairs, eval_pairs, neighbours
from medmo_core.metrics import grounding_scores

RECORDS = {record.path: record for record in load_facts()}


@pytest.fixture(scope="module", params=["train", "test"])
def drawn(request: pytest.FixtureRequest) -> list[Sample]:
    """Two hundred questions of a split."""
    source = Pairs(request.param)
    return [source.get(i * len(source) // 200, Random(f"pairs/{i}")) for i in range(200)]


def form_of(sample: Sample) -> str:
    return str(sample.provenance["template"]).removeprefix("pair/")


def pixels_in_view(record: ImageFacts, image: ImageRef, name: str) -> np.ndarray:
    """The mask, or the box where that is all that is known, of one structure as the view shows it."""
    mask = mask_of(record)
    assert mask is not None
    found = [s for s in record.structures if s.name == name]
    shown = np.isin(mask, [s.mask_value for s in found if s.mask_value is not None])
    for x1, y1, x2, y2 in (s.xyxy_px for s in found if s.mask_value is None):
        shown[y1:y2, x1:x2] = True
    shown = shown.astype(np.uint8)[..., None].repeat(3, axis=2)
    return (shown if image.crop is None else crop_pixels(shown, image.crop))[..., 0] > 0


def assert_agrees_with_masks(sample: Sample) -> None:
    """Boxes hug the masks of their own view; what is said to differ is in one view and not at all in the other."""
    records = [RECORDS[image.path] for image in sample.images]
    for box in sample.boxes:
        record, image = records[box.image], sample.images[box.image]
        if record.mask is None:
            continue
        rows, columns = np.nonzero(pixels_in_view(record, image, box.label))
        assert box.xyxy_px == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), sample.id
    if records[0].mask is None:
        return
    sought = {(sample.boxes[i].label, sample.boxes[i].image) for i in sample.sought}
    for name in sample.provenance["about"]:
        seen = [pixels_in_view(r, i, name).any() for r, i in zip(records, sample.images, strict=True)]
        expected = {
            "track": {(name, 1)},
            "gone": set(),
            "new": {(name, 1)} if seen == [False, True] else set(),
            "either": {(name, seen.index(True))} if sum(seen) == 1 else set(),
        }[form_of(sample)]
        assert {pair for pair in sought if pair[0] == name} == expected, sample.id
        assert seen == [True, False] or form_of(sample) != "gone", sample.id


def test_answers_agree_with_the_masks_of_both_views(drawn: list[Sample]) -> None:
    for sample in drawn:
        assert_agrees_with_masks(sample)


def test_a_box_on_the_wrong_view_is_noticed(drawn: list[Sample]) -> None:
    moved = next(s for s in drawn if form_of(s) == "track" and s.images[0].crop != s.images[1].crop)
    turned = tuple(replace(box, image=1 - box.image) for box in moved.boxes)
    with pytest.raises((AssertionError, ValueError)):
        assert_agrees_with_masks(replace(moved, boxes=turned))


def test_both_views_come_from_one_volume_of_one_split_and_lie_near(drawn: list[Sample]) -> None:
    for sample in drawn:
        first, second = (RECORDS[image.path] for image in sample.images)
        assert first.group == second.group == sample.group and first.split == second.split == sample.split
        volume = [r.id for r in load_facts() if r.group == first.group]
        assert abs(volume.index(first.id) - volume.index(second.id)) <= MAX_STEPS
    assert {RECORDS[s.images[0].path].split for s in drawn} == {drawn[0].split}


def test_every_form_comes_and_answers_lie_in_either_image_both_or_none(drawn: list[Sample]) -> None:
    assert set(map(form_of, drawn)) == {"track", "gone", "new", "either"}
    where = Counter(tuple(sorted({s.boxes[i].image for i in s.sought})) for s in drawn)
    assert set(where) == {(), (0,), (1,), (0, 1)} and where[(0, 1)] >= 4
    assert 0.05 < where[()] / len(drawn) < 0.3


def test_the_given_box_is_a_poor_answer(drawn: list[Sample]) -> None:
    """The windows are drawn apart, so copying the box of the question does not find it in the other view."""
    tracked = [s for s in drawn if form_of(s) == "track"]
    copies = []
    for sample in tracked:
        given, (width, height) = sample.boxes[0], sample.images[1].size or (0, 0)
        inside = tuple(min(corner, limit) for corner, limit in zip(given.xyxy_px, (width, height) * 2, strict=True))
        copies.append(replace(sample, boxes=(given, replace(given, image=1, xyxy_px=inside))))  # type: ignore[arg-type]
    said, truth = ([s.truth_boxes() for s in samples] for samples in (copies, tracked))
    iou = grounding_scores(said, truth).iou  # type: ignore[arg-type]
    assert sum(iou) / len(iou) < 0.2


def test_a_draw_is_a_function_of_its_number(drawn: list[Sample]) -> None:
    source = Pairs(str(drawn[0].split))
    again = [source.get(i * len(source) // 200, Random(f"pairs/{i}")) for i in range(20)]
    assert again == drawn[:20]


def test_samples_to_evaluate_on_are_fixed_and_distinct() -> None:
    samples = eval_pairs("test", 40)
    assert samples == eval_pairs("test", 40)
    assert len({s.id for s in samples}) == len(samples) > 35
    assert samples != eval_pairs("test", 40, seed=1)
    assert all(s.task == "grounding" and len(s.images) == 2 and s.answer and s.answer.image == 1 for s in samples)


def test_whole_images_allow_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Pairs("test", crops=False)
    monkeypatch.setattr(pairs_module, "MAX_ATTEMPTS", 2)
    for index in range(0, len(source), 97):
        sample = source.get(index, Random(index))
        assert all(image.crop is None for image in sample.images)
        assert_agrees_with_masks(sample)


def test_an_image_of_its_own_has_no_neighbours() -> None:
    (record,) = [r for r in load_facts() if r.source == "mr-liver-overlay"]
    assert neighbours(record) == (record,)

"""Boxes of several images: the text says which image, every number refers to its own image, and images never mix."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core.boxes import (
    GRAMMARS,
    Boxes,
    ImageBoxes,
    by_image,
    no_boxes,
    parse_boxes,
    parse_image_boxes,
    print_boxes,
    print_image_boxes,
    resize_like,
)
from medmo_core.metrics import grounding_scores
from medmo_core.metrics.matching import box_problems
from medmo_core.profile import MEDMO, MEDMO_CANVAS768, QWEN3_VL, CheckpointProfile
from medmo_core.rewards import REWARDS

SIZES = ((200, 100), (64, 480))
NAMING = [name for name, grammar in GRAMMARS.items() if grammar.image_place]
SILENT = [name for name in GRAMMARS if name not in NAMING]


def boxes(
    *rows: tuple[int, str, list[float]], default: int = 1, sizes: tuple[tuple[int, int], ...] = SIZES
) -> ImageBoxes:
    """Boxes given as (image, label, corners in px)."""
    parts = tuple(
        Boxes(
            torch.tensor([row for image, _, row in rows if image == index], dtype=torch.float64).reshape(-1, 4),
            "pixel",
            size,
            tuple(label for image, label, _ in rows if image == index),
        )
        for index, size in enumerate(sizes)
    )
    return ImageBoxes(parts, default)


LIVER_TWICE = boxes((0, "liver", [20, 10, 60, 50]), (1, "liver", [16, 48, 32, 240]))


def test_json_names_the_image_of_each_box() -> None:
    assert print_image_boxes(LIVER_TWICE) == (
        '[{"image": 1, "bbox_2d": [100, 100, 300, 500], "label": "liver"}, '
        '{"image": 2, "bbox_2d": [250, 100, 500, 500], "label": "liver"}]'
    )


def test_medmos_grammar_names_it_before_the_label() -> None:
    assert print_image_boxes(LIVER_TWICE, "medmo_box") == (
        "Image 1: liver <box>[[100, 100, 300, 500]]</box>\nImage 2: liver <box>[[250, 100, 500, 500]]</box>"
    )
    assert print_image_boxes(LIVER_TWICE.with_labels(["", ""]), "medmo_box").splitlines()[1].startswith("Image 2 <box>")


@st.composite
def image_boxes(draw: st.DrawFn) -> ImageBoxes:
    sizes = draw(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=2, max_size=4))
    label = st.sampled_from(["", "liver", "left kidney", "Image 3", "image 1: old"])
    parts = []
    for size in sizes:
        rows = draw(st.lists(st.lists(st.integers(0, 1000), min_size=4, max_size=4), max_size=3))
        corners = [[min(a, c), min(b, d), max(a, c, 1), max(b, d, 1)] for a, b, c, d in rows]
        corners = [[min(x1, x2 - 1), min(y1, y2 - 1), x2, y2] for x1, y1, x2, y2 in corners]  # none without area
        names = tuple(draw(label) for _ in rows)
        parts.append(Boxes(torch.tensor(corners, dtype=torch.float64).reshape(-1, 4), "norm1000", size, names))
    return ImageBoxes(tuple(parts), draw(st.integers(0, len(sizes) - 1)))


@pytest.mark.parametrize("name", NAMING)
@given(several=image_boxes())
@settings(max_examples=30, deadline=None)
def test_every_grammar_with_labels_says_the_image_and_reads_it_back(name: str, several: ImageBoxes) -> None:
    frame = "norm1000"
    text = print_image_boxes(several, name, frame)
    parsed = parse_image_boxes(text, several.sizes, name, frame, default=several.default)
    assert parsed.ok, (text, parsed.errors)
    assert (parsed.boxes.images, parsed.boxes.labels) == (several.images, several.labels)
    tolerance = 1.0 if GRAMMARS[name].bins != 1000 else 1e-9
    torch.testing.assert_close(parsed.boxes.xyxy, several.xyxy, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", SILENT)
def test_a_grammar_without_labels_points_into_the_default_image_only(name: str) -> None:
    unlabelled = LIVER_TWICE.with_labels(["", ""])
    with pytest.raises(ValueError, match=f"grammar '{name}' cannot say that a box lies in image 1.*qwen3_vl_json"):
        print_image_boxes(unlabelled, name)
    second = boxes((1, "", [16, 48, 32, 240]))
    text = print_image_boxes(second, name)
    assert text == print_boxes(second.per_image[1], name)
    assert parse_image_boxes(text, SIZES, name, default=1).boxes.resize(SIZES) == second


def test_the_frame_is_named_where_the_grammar_names_it() -> None:
    for frame in ("pixel", "norm1000"):
        assert f'"box_format": "{frame}"' in print_image_boxes(LIVER_TWICE, "slake_json", frame)
    assert '"box_format": "pixel"' in print_image_boxes(LIVER_TWICE, "slake_json")


def test_numbers_refer_to_their_own_image_in_every_frame() -> None:
    text = '[{"image": 1, "bbox_2d": [20, 10, 60, 50]}, {"image": 2, "bbox_2d": [20, 10, 60, 470]}]'
    in_pixels = parse_image_boxes(text, SIZES, frame="pixel", default=0)
    assert in_pixels.ok and in_pixels.boxes.sizes == SIZES
    assert in_pixels.boxes.xyxy.tolist() == [[20, 10, 60, 50], [20, 10, 60, 470]]
    too_far = parse_image_boxes(text.replace("470", "500"), SIZES, frame="pixel", default=0)
    assert too_far.boxes.xyxy[1].tolist() == [20, 10, 60, 480]
    assert not too_far.ok and too_far.errors[0].startswith("image 2: box 0 (no label) is [20, 10, 60, 500]: outside")
    thousandths = parse_image_boxes(text, SIZES, default=0).boxes
    assert [part.pixel().xyxy.tolist() for part in thousandths.per_image] == [
        [[4.0, 1.0, 12.0, 5.0]],
        [[1.28, 4.8, 3.84, 225.6]],
    ]


def test_a_canvas_is_every_images_own() -> None:
    said = MEDMO_CANVAS768.write_boxes(LIVER_TWICE)
    assert said.splitlines() == [
        "Image 1: liver <box>[[77, 77, 230, 384]]</box>",
        "Image 2: liver <box>[[192, 77, 384, 384]]</box>",
    ]
    read = MEDMO_CANVAS768.parse_boxes(said, LIVER_TWICE)
    assert read.ok
    torch.testing.assert_close(resize_like(read.boxes, LIVER_TWICE).xyxy, LIVER_TWICE.xyxy, rtol=0, atol=0.5)


def test_a_box_that_names_no_image_lies_in_the_default_one() -> None:
    text = '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"image": 1, "bbox_2d": [5, 6, 7, 8], "label": "b"}]'
    for default, images in ((0, (0, 0)), (1, (0, 1))):
        parsed = parse_image_boxes(text, SIZES, default=default)
        assert parsed.ok and parsed.boxes.images == images


@pytest.mark.parametrize("number", ["0", "3", "-1", "true", '"2"', "1.5", "null", "[1]", "1e99"])
def test_an_image_that_is_not_shown_is_an_error_and_its_box_dropped(number: str) -> None:
    parsed = parse_image_boxes(f'[{{"image": {number}, "bbox_2d": [1, 2, 3, 4], "label": "liver"}}]', SIZES, default=1)
    assert len(parsed.boxes) == 0 and not parsed.ok and parsed.grammar == "qwen3_vl_json"
    assert "box 0 (liver): image is " in parsed.errors[0] and "expected 1 to 2" in parsed.errors[0]


def test_objects_as_python_prints_them_keep_their_image() -> None:
    parsed = parse_image_boxes("[{'image': 1, 'bbox_2d': [1, 2, 3, 4], 'label': 'liver'}]", SIZES, default=1)
    assert parsed.ok and parsed.boxes.images == (0,) and parsed.boxes.labels == ("liver",)


@given(st.one_of(st.text(max_size=80), st.none(), st.integers()), st.sampled_from(["auto", *GRAMMARS]))
@settings(max_examples=150, deadline=None)
def test_no_text_makes_reading_raise(text: object, grammar: str) -> None:
    parsed = parse_image_boxes(text, SIZES, grammar, default=0)
    assert len(parsed.boxes.per_image) == 2 and parsed.ok == (parsed.grammar is not None and not parsed.errors)


@pytest.mark.parametrize("said", ["[]", "No disease detected.", "<box>[]</box>", "babble", ""])
def test_saying_there_is_nothing_is_read_as_for_one_image(said: str) -> None:
    one, several = parse_boxes(said, SIZES[0]), parse_image_boxes(said, SIZES, default=1)
    assert (one.ok, one.grammar, one.errors) == (several.ok, several.grammar, several.errors)


def test_containers_refuse_what_does_not_fit() -> None:
    pixel, unit = Boxes.empty((3, 4)), Boxes.empty((3, 4), "unit")
    with pytest.raises(ValueError, match="need one frame, found pixel, unit"):
        ImageBoxes((pixel, unit), 0)
    with pytest.raises(ValueError, match="need one frame, found no image"):
        ImageBoxes((), 0)
    with pytest.raises(ValueError, match="default is 2: expected an index below 2"):
        ImageBoxes((pixel, pixel), 2)
    with pytest.raises(ValueError, match="2 boxes but 1 labels"):
        LIVER_TWICE.with_labels(["a"])
    with pytest.raises(ValueError, match="boxes of 1 image"):
        resize_like(pixel, LIVER_TWICE)
    assert no_boxes(LIVER_TWICE) == boxes() and by_image(pixel) == (pixel,)


def reference_scores(said: ImageBoxes, truth: ImageBoxes, threshold: float = 0.5) -> tuple[float, float]:
    """IoU and F1 by trying every assignment, image by image."""

    def iou(a: list[float], b: list[float]) -> float:
        sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
        inter = sides[0] * sides[1]
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        return inter / (sum(areas) - inter) if inter else 0.0

    pred = list(zip(said.images, said.labels, said.xyxy.tolist(), strict=True))
    true = list(zip(truth.images, truth.labels, truth.xyxy.tolist(), strict=True))
    best, hits = 0.0, 0
    short, long = (pred, true) if len(pred) <= len(true) else (true, pred)
    for order in itertools.permutations(range(len(long)), len(short)):
        values = [iou(a[2], long[j][2]) if a[:2] == long[j][:2] else 0.0 for a, j in zip(short, order, strict=True)]
        if sum(values) > best:
            best, hits = sum(values), sum(v >= threshold for v in values)
    if not pred and not true:
        return 1.0, 1.0
    return best / max(len(pred), len(true)), 2 * hits / (len(pred) + len(true))


def test_scores_equal_a_brute_force_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(40):
        drawn = []
        for _ in range(2):
            rows = []
            for _ in range(int(torch.randint(0, 5, (1,), generator=generator))):
                image = int(torch.randint(0, 2, (1,), generator=generator))
                width, height = SIZES[image]
                x, y = (torch.rand(2, generator=generator) * 0.3).tolist()
                label = ("liver", "spleen")[int(torch.randint(0, 2, (1,), generator=generator))]
                rows.append((image, label, [x * width, y * height, (x + 0.5) * width, (y + 0.4) * height]))
            drawn.append(boxes(*rows))
        pairs.append(tuple(drawn))
    scores = grounding_scores([said for said, _ in pairs], [truth for _, truth in pairs])
    expected = [reference_scores(said, truth) for said, truth in pairs]
    torch.testing.assert_close(torch.tensor(scores.iou), torch.tensor([iou for iou, _ in expected]), rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.tensor(scores.f1), torch.tensor([f1 for _, f1 in expected]), rtol=0, atol=1e-9)
    assert len({round(iou, 3) for iou, _ in expected}) > 10


def test_the_same_box_in_the_other_image_is_no_match() -> None:
    truth = boxes((0, "liver", [20, 10, 60, 50]), sizes=((200, 100), (200, 100)))
    other = boxes((1, "liver", [20, 10, 60, 50]), sizes=((200, 100), (200, 100)))
    assert grounding_scores([truth, other], [truth, truth]) == ([1.0, 0.0], [1.0, 0.0])
    unlabelled = truth.with_labels([""])
    assert grounding_scores([other.with_labels([""])], [unlabelled]).iou == [0.0]


def test_one_image_and_several_do_not_mix() -> None:
    with pytest.raises(ValueError, match="more or fewer images"):
        box_problems([LIVER_TWICE.per_image[0]], [LIVER_TWICE])
    mixed = grounding_scores([LIVER_TWICE, LIVER_TWICE.per_image[0]], [LIVER_TWICE, LIVER_TWICE.per_image[0]])
    assert mixed.iou == [1.0, 1.0]


def reward(name: str, text: str, truth: ImageBoxes, profile: CheckpointProfile = QWEN3_VL) -> float:
    (score,) = REWARDS[name](
        [text],
        task=["grounding"],
        answer=[None],
        boxes=[truth],
        facts=[()],
        image_size=[truth.sizes[truth.default]],
        profile=[profile],
    )
    assert score is not None
    return score


@pytest.mark.parametrize("profile", [QWEN3_VL, MEDMO, CheckpointProfile(grammar="slake_json", frame="pixel")])
@pytest.mark.parametrize("name", ["box", "medmo_box"])
def test_rewards_pay_for_the_right_image_only(name: str, profile: CheckpointProfile) -> None:
    """Exchanging the numbers of the images is as wrong as boxes can be; a missing image costs half."""
    truth = boxes((0, "liver", [20, 10, 60, 50]), (1, "spleen", [16, 48, 32, 240]))
    right = profile.write_boxes(truth)
    exchange = {"1": "2", "2": "1"}
    names = '"image": ' if "json" in profile.grammar else "Image "
    pieces = right.split(names)
    swapped = names.join([pieces[0], *(exchange[piece[0]] + piece[1:] for piece in pieces[1:])])
    assert swapped != right
    assert reward(name, right, truth, profile) == pytest.approx(1.0)
    half = profile.write_boxes(replace(truth, per_image=(truth.per_image[0], Boxes.empty(SIZES[1]))))
    assert 0.3 < reward(name, half, truth, profile) < 0.7
    if name == "box":
        assert reward(name, swapped, truth, profile) == 0.0


def test_two_images_may_have_the_same_box_but_one_image_not() -> None:
    truth = boxes()
    said = '[{"image": 1, "bbox_2d": [1, 2, 3, 4], "label": "a"}, {"image": 2, "bbox_2d": [1, 2, 3, 4], "label": "a"}]'
    assert reward("format", said, truth) == 1.0
    assert reward("format", said.replace('"image": 2', '"image": 1'), truth) == 0.5
    assert reward("format", said.replace('"image": 2', '"image": 7'), truth) == 0.5


def test_a_matcher_that_forgets_images_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from medmo_core.metrics import matching

    monkeypatch.setattr(matching, "_within_images", lambda boxes, names: names)
    with pytest.raises(AssertionError):
        test_the_same_box_in_the_other_image_is_no_match()

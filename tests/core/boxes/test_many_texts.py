"""Many texts and many images at once give what one by one gives, for any text."""

import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core.boxes import Boxes, ImageBoxes, ParsedBoxes, corners_px, parse_boxes, parse_many, print_boxes
from medmo_core.boxes.recognise import plain_list
from medmo_core.profile import QWEN3_VL

SIZE = (200, 100)
GOOD = '[{"bbox_2d": [1, 2, 3, 4], "label": "liver"}, {"bbox_2d": [0, 0, 1000, 20], "label": "left kidney"}]'
NEARLY = (
    GOOD,
    GOOD[:-1],
    GOOD[1:],
    GOOD + " ",
    GOOD + "]",
    " " + GOOD,
    GOOD.replace("}, {", "}; {"),
    GOOD.replace("}, {", "}[{"),
    GOOD.replace("}, {", "}, x{"),
    GOOD.replace(", {", ",\n{"),
    GOOD.replace("1, 2", "01, 2"),
    GOOD.replace("1, 2", "-1, 2"),
    GOOD.replace("1, 2", "1.5, 2"),
    GOOD.replace("1, 2", "true, 2"),
    GOOD.replace("1, 2", "1e1, 2"),
    GOOD.replace("1, 2", "9, 2"),
    GOOD.replace("1, 2", "1, 2, 3"),
    GOOD.replace("1, 2", "1"),
    GOOD.replace("1, 2", "\u0661, 2"),
    GOOD.replace("1, 2", "1" * 500 + ", 2"),
    GOOD.replace("1000", "1001"),
    GOOD.replace("1000", "999999999"),
    GOOD.replace("20]", "0]"),
    GOOD.replace("liver", 'li\\"ver'),
    GOOD.replace("liver", "li\nver"),
    GOOD.replace("liver", "detections"),
    GOOD.replace("liver", "'box_format': 'pixel'"),
    GOOD.replace("liver", "\u6c34 ]}, {"),
    GOOD.replace('"label"', '"class"'),
    GOOD.replace('"bbox_2d"', '"bbox\\u005f2d"'),
    GOOD.replace('"label": "liver"', '"label": "liver", "image": 1'),
    GOOD.replace('"label": "liver"', '"label": "a", "label": "liver"'),
    f"```json\n{GOOD}\n```",
    f"<answer>{GOOD}</answer>",
    '[{"bbox_2d": [1, 2, 3, 4], [5, 6, 7, 8], "label": "a"}], "label": "b"}]',
    '[{"bbox_2d": [1, 2, 3, 4, {"bbox_2d": [5, 6, 7, 8], "label": "a"}], "label": "b"}]',
    "[]",
    "",
    "No liver is seen.",
    "liver <box>[[1, 2, 3, 4]]</box>",
    None,
    7,
)


def check(texts: list[object], grammar: str = "qwen3_vl_json", frame: str = "norm1000") -> None:
    sizes = [(200 + index % 2, 100) for index in range(len(texts))]
    together = parse_many(texts, sizes, grammar, frame)
    for text, size, found in zip(texts, sizes, together, strict=True):
        assert found == parse_boxes(text, size, grammar, frame), text
        assert found.boxes.xyxy.dtype == torch.float64


@pytest.mark.parametrize("grammar", ["qwen3_vl_json", "auto", "medmo_box"])
@pytest.mark.parametrize("frame", ["norm1000", "pixel", "unit"])
def test_texts_that_are_nearly_lists(grammar: str, frame: str) -> None:
    check(list(NEARLY), grammar, frame)
    for text in NEARLY:
        check([text], grammar, frame)


def test_what_is_read_at_once_is_only_what_is_printed() -> None:
    """The quick way takes the first text and those that differ in numbers and labels alone."""
    quick = [text for text in NEARLY if plain_list(text) is not None]
    numbers = [GOOD.replace("1, 2", "9, 2"), GOOD.replace("1000", "1001"), GOOD.replace("1000", "999999999"),
               GOOD.replace("20]", "0]")]  # fmt: skip
    labels = [GOOD.replace("liver", word) for word in ("detections", "'box_format': 'pixel'", "\u6c34 ]}, {")]
    changed = numbers + labels
    assert quick == [GOOD, *changed]


ITEMS = st.fixed_dictionaries(
    {
        "bbox_2d": st.lists(st.integers(-3, 1003) | st.floats() | st.booleans(), min_size=3, max_size=5)
        | st.lists(st.integers(0, 1000), min_size=4, max_size=4),
        "label": st.sampled_from(["liver", "", 'a "b"', "detections"]) | st.text(max_size=5) | st.integers(),
    }
)


@given(texts=st.lists(st.lists(ITEMS, max_size=4).map(json.dumps), max_size=5), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_json_list(texts: list[str], data: st.DataObject) -> None:
    """And any such list with one piece cut out."""
    cut = []
    for text in texts:
        start = data.draw(st.integers(0, len(text)))
        cut.append(text[:start] + text[start + data.draw(st.integers(0, 3)) :])
    check([*texts, *cut])


def test_whole_numbers_are_those_of_the_json_module() -> None:
    rng = random.Random(0)
    rows = [sorted(rng.randint(0, 999_999_999) for _ in range(4)) for _ in range(500)]
    items = [{"bbox_2d": row, "label": "a"} for row in rows]
    (found,) = parse_many([json.dumps(items)], [(10**9, 10**9)], frame="pixel")
    assert found.ok
    assert found.boxes.xyxy.tolist() == [item["bbox_2d"] for item in json.loads(json.dumps(items))]


def test_printed_boxes_are_read_at_once() -> None:
    boxes = Boxes(torch.tensor([[20.0, 10.0, 60.0, 50.0], [0.0, 0.0, 200.0, 100.0]]), "pixel", SIZE, ("liver", "all"))
    text = print_boxes(boxes)
    assert plain_list(text) == ("100, 100, 300, 500, 0, 0, 1000, 1000", ("liver", "all"))
    assert parse_many([text], [SIZE]) == [ParsedBoxes(boxes.to("norm1000"), True, "qwen3_vl_json", ())]


def test_a_wrong_size_grammar_or_frame_is_refused_as_ever() -> None:
    for arguments in (((0, 5), "auto", "norm1000"), (SIZE, "fog", "norm1000"), (SIZE, "auto", "miles")):
        with pytest.raises(ValueError, match=r"size|grammar|frame"):
            parse_boxes(GOOD, *arguments)
        with pytest.raises(ValueError, match=r"size|grammar|frame"):
            parse_many([GOOD], [arguments[0]], *arguments[1:])
    assert parse_many([], []) == []


def test_corners_of_many_images_are_those_of_each_resized() -> None:
    rng = random.Random(1)
    images, sizes = [], []
    for index in range(40):
        size = (rng.randint(1, 3000), rng.randint(1, 3000))
        frame = ("pixel", "norm1000", "unit")[index % 3]
        unit = torch.rand(index % 4, 2, 2, dtype=torch.float64).sort(1).values.reshape(-1, 4)
        images.append(Boxes(unit, "unit", size).to(frame))
        sizes.append(size if index % 2 else (rng.randint(1, 3000), rng.randint(1, 3000)))
    expected = torch.cat([boxes.resize(size).xyxy for boxes, size in zip(images, sizes, strict=True)])
    assert torch.equal(corners_px(images, sizes), expected)
    assert corners_px([], []).shape == (0, 4)


def test_a_profile_reads_samples_of_one_and_of_several_images_together() -> None:
    one = Boxes.empty(SIZE)
    several = ImageBoxes((Boxes.empty(SIZE), Boxes.empty((50, 60))), default=1)
    where = [one, several, one]
    assert QWEN3_VL.parse_many([GOOD, GOOD, "[]"], where) == [
        QWEN3_VL.parse_boxes(text, place) for text, place in zip([GOOD, GOOD, "[]"], where, strict=True)
    ]

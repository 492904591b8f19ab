"""Boxes printed as text and read back: steps, units, and what becomes of a box that cannot be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core.boxes import GRAMMARS, Boxes, parse_boxes, print_boxes, under_step

SIZE = (200, 100)


def one(*corners: float, frame: str = "pixel", size: tuple[int, int] = SIZE) -> Boxes:
    return Boxes(torch.tensor([corners], dtype=torch.float64), frame, size)


@st.composite
def boxes_of_an_image(draw: st.DrawFn) -> Boxes:
    size = draw(st.tuples(st.integers(1, 4000), st.integers(1, 4000)))
    corners = st.tuples(st.floats(0, size[0]), st.floats(0, size[1]))
    ends = torch.tensor(draw(st.lists(st.tuples(corners, corners), max_size=5)), dtype=torch.float64).view(-1, 2, 2)
    return Boxes(torch.cat([ends.amin(1), ends.amax(1)], 1), "pixel", size)


@given(boxes_of_an_image())
@settings(max_examples=60, deadline=None)
def test_text_holds_a_box_to_half_a_thousandth(boxes: Boxes) -> None:
    parsed = parse_boxes(print_boxes(boxes), boxes.size)
    assert parsed.ok and len(parsed.boxes) == len(boxes)
    kept = boxes.to("norm1000").xyxy
    error = (parsed.boxes.xyxy - kept).abs()
    thin = (kept[:, 2:] - kept[:, :2] < 1).repeat(1, 2)  # such a side becomes a thousandth long
    assert bool((error <= torch.where(thin, 1.0, 0.5) + 1e-9).all())


@given(boxes_of_an_image(), st.sampled_from([2, 10]))
@settings(max_examples=40, deadline=None)
def test_a_step_rounds_what_is_written_and_nothing_else(boxes: Boxes, step: int) -> None:
    said = parse_boxes(print_boxes(boxes, step=step), boxes.size)
    numbers = said.boxes.xyxy
    assert bool((numbers % step == 0).all())
    kept = boxes.to("norm1000").xyxy
    thin = (kept[:, 2:] - kept[:, :2] < step).repeat(1, 2)
    assert bool(((numbers - kept).abs() <= step * torch.where(thin, 1.0, 0.5) + 1e-9).all())


@pytest.mark.parametrize("grammar", GRAMMARS)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_every_written_box_has_an_area(grammar: str, data: st.DataObject) -> None:
    """Both sides are a step long where the image is, no number leaves the frame, and the text earns what it shows."""
    frame, step = data.draw(st.sampled_from([("norm1000", 1), ("norm1000", 10), ("pixel", 1), ("pixel", 10)]))
    frame = "norm1000" if GRAMMARS[grammar].bins != 1000 else frame
    size = data.draw(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
    x, y = (data.draw(st.floats(0, side)) for side in size)
    width, height = (data.draw(st.floats(0, 12)) for _ in range(2))
    box = one(x, y, min(x + width, size[0]), min(y + height, size[1]), size=size)
    said = parse_boxes(print_boxes(box, grammar, frame, step), size, grammar, frame)
    assert said.ok, said.errors
    unit = step * 1000 / GRAMMARS[grammar].bins
    limits = torch.tensor([float(size[0]), float(size[1])] if frame == "pixel" else [1000.0, 1000.0])
    sides = (said.boxes.xyxy[:, 2:] - said.boxes.xyxy[:, :2])[0]
    assert bool((sides >= torch.minimum(torch.tensor(unit), limits) - 1e-6).all())
    kept = box.to(frame).xyxy[0]
    low, high = said.boxes.xyxy[0, :2], said.boxes.xyxy[0, 2:]
    assert bool((torch.minimum(high, kept[2:]) >= torch.maximum(low, kept[:2]) - unit / 2).all()), "it lies elsewhere"


@pytest.mark.parametrize(
    ("corners", "size", "step", "written"),
    [
        ((2000, 2000, 2003, 2003), (4096, 4096), 1, [488, 488, 489, 489]),  # 0.7 of a thousandth
        ((2000, 2000, 2012, 2012), (4096, 4096), 10, [480, 480, 490, 490]),
        ((4095, 0, 4096, 1), (4096, 4096), 1, [999, 0, 1000, 1]),
        ((4095, 0, 4096, 1), (4096, 4096), 10, [990, 0, 1000, 10]),
        ((100, 100, 101, 300), (1000, 1000), 1, [100, 100, 101, 300]),
    ],
)
def test_a_thin_side_is_written_as_the_step_it_lies_in(
    corners: tuple[int, ...], size: tuple[int, int], step: int, written: list[int]
) -> None:
    text = print_boxes(one(*corners, size=size), step=step)
    assert parse_boxes(text, size).boxes.xyxy.tolist() == [written]


def test_the_end_of_an_image_is_no_multiple_of_the_step() -> None:
    text = print_boxes(one(512, 0, 515, 3, size=(517, 5)), frame="pixel", step=10)
    assert parse_boxes(text, (517, 5), frame="pixel").boxes.xyxy.tolist() == [[500, 0, 517, 5]]


def test_boxes_under_a_step_are_named() -> None:
    rows = [[10.0, 10.0, 13.0, 400.0], [10.0, 10.0, 500.0, 15.0], [10.0, 10.0, 15.0, 15.0]]
    boxes = Boxes(torch.tensor(rows), "pixel", (4096, 4096))
    assert under_step(boxes) == [0] and under_step(boxes, step=10) == [0, 1, 2]
    assert under_step(boxes, frame="pixel") == [] == under_step(Boxes.empty(SIZE))
    edge = Boxes(torch.tensor([[0.0, 0.0, 1.0, 0.5]]), "unit", (10, 10))
    assert under_step(edge, frame="pixel", step=5) == [] and under_step(edge, frame="pixel", step=6) == [0]


@pytest.mark.parametrize("frame", ["norm1000", "pixel"])
@pytest.mark.parametrize("grammar", ["qwen3_vl_json", "medmo_box", "medmo_label_list", "minicpm_box"])
def test_fractions_in_a_text_are_an_error_and_no_box(grammar: str, frame: str) -> None:
    text = print_boxes(one(0.28, 0.5, 0.52, 0.7, frame="unit"), grammar, "unit")
    said = parse_boxes(text, SIZE, grammar, frame)
    unit = "pixels" if frame == "pixel" else "thousandths of the image side"
    expected = f"is [0.28, 0.5, 0.52, 0.7]: fractions of the image side where {unit} are expected"
    assert not said.ok and len(said.boxes) == 0 and expected in said.errors[0]
    assert parse_boxes(text, SIZE, grammar, "unit").ok


def test_a_step_must_fit_the_frame() -> None:
    boxes = Boxes([[0, 0, 5, 5]], "pixel", (10, 10))
    for frame, step in (("norm1000", 0), ("unit", 10)):
        with pytest.raises(ValueError, match=f"step is {step}"):
            print_boxes(boxes, frame=frame, step=step)


def test_printing_rounds_and_stays_inside() -> None:
    boxes = Boxes(torch.tensor([[0.4, 0.6, 199.9, 100.0]], dtype=torch.float64), "pixel", SIZE, ("a",))
    assert print_boxes(boxes) == '[{"bbox_2d": [2, 6, 1000, 1000], "label": "a"}]'
    assert print_boxes(boxes, frame="pixel") == '[{"bbox_2d": [0, 1, 200, 100], "label": "a"}]'
    assert print_boxes(boxes, frame="unit") == '[{"bbox_2d": [0.002, 0.006, 0.9995, 1.0], "label": "a"}]'
    assert print_boxes(boxes, "rex_omni").count("<999>") == 2


@pytest.mark.parametrize(
    ("corners", "kept", "word"),
    [
        ("[1, 2, 3]", None, "list of four numbers"),
        ('[1, 2, 3, "x"]', None, "list of four numbers"),
        ("[true, 2, 3, 4]", None, "list of four numbers"),
        ("[1, 2, 1200, 4]", [1, 2, 1000, 4], "outside its image"),
        ("[1200, 2, 1300, 4]", None, "outside its image"),
        ("[30, 2, 3, 4]", None, "corners are reversed"),
        ("[NaN, 2, 3, 4]", None, "not a finite number"),
        ("[1e999, 2, 3, 4]", None, "not a finite number"),
        ("[" + "9" * 400 + ", 2, 3, 4]", None, "list of four numbers"),
    ],
)
def test_a_bad_box_is_dropped_or_clipped_and_named(corners: str, kept: list[float] | None, word: str) -> None:
    text = f'[{{"bbox_2d": {corners}, "label": "bad"}}, {{"bbox_2d": [5, 6, 7, 8], "label": "good"}}]'
    parsed = parse_boxes(text, SIZE)
    assert parsed.boxes.xyxy.tolist() == ([kept] if kept else []) + [[5, 6, 7, 8]]
    assert not parsed.ok and word in parsed.errors[0] and "bad" in parsed.errors[0]


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(ValueError, match="unknown box grammar 'yaml': use one of qwen3_vl_json"):
        parse_boxes("[]", SIZE, "yaml")
    with pytest.raises(ValueError, match="unknown box frame"):
        parse_boxes("[]", SIZE, frame="percent")


@pytest.mark.parametrize("text", [None, 5, b"[]", ["[]"]])
def test_what_is_no_text_reads_as_empty(text: object) -> None:
    assert not parse_boxes(text, SIZE).ok

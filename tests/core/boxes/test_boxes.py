"""Boxes: frames, conversions, windows, and the messages about boxes that cannot be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core.boxes import FRAMES, GRAMMARS, Boxes, parse_boxes, print_boxes, under_step, unit_mistake

SIZE = (640, 480)


def one(*corners: float, frame: str = "pixel", size: tuple[int, int] = SIZE, label: str = "liver") -> Boxes:
    return Boxes(torch.tensor([corners], dtype=torch.float64), frame, size, (label,))


@st.composite
def boxes_of_an_image(draw: st.DrawFn, max_boxes: int = 5) -> Boxes:
    size = draw(st.tuples(st.integers(1, 4000), st.integers(1, 4000)))
    rows = []
    for _ in range(draw(st.integers(0, max_boxes))):
        xs = sorted(draw(st.floats(0, size[0])) for _ in range(2))
        ys = sorted(draw(st.floats(0, size[1])) for _ in range(2))
        rows.append([xs[0], ys[0], xs[1], ys[1]])
    return Boxes(torch.tensor(rows, dtype=torch.float64).reshape(-1, 4), "pixel", size)


def test_frames_name_the_same_place() -> None:
    box = one(64, 48, 320, 480)
    assert box.to("unit").xyxy.tolist() == [[0.1, 0.1, 0.5, 1.0]]
    assert box.to("norm1000").xyxy.tolist() == [[100.0, 100.0, 500.0, 1000.0]]
    assert box.to("pixel", (1280, 240)).xyxy.tolist() == [[128.0, 24.0, 640.0, 240.0]]
    assert box.to("norm1000", (1280, 240)).size == (1280, 240)
    assert box.resize((1280, 240)) == box.to("norm1000").resize((1280, 240))


@given(boxes_of_an_image(), st.sampled_from(FRAMES), st.tuples(st.integers(1, 4000), st.integers(1, 4000)))
@settings(max_examples=60, deadline=None)
def test_every_conversion_comes_back(boxes: Boxes, frame: str, size: tuple[int, int]) -> None:
    back = boxes.to(frame, size).to("pixel", boxes.size)
    assert back.size == boxes.size and back.labels == boxes.labels
    assert torch.allclose(back.xyxy, boxes.xyxy, rtol=0, atol=1e-9 * max(boxes.size))


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
    box = one(x, y, min(x + width, size[0]), min(y + height, size[1]), size=size, label="")
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


@pytest.mark.parametrize(
    ("row", "frame", "wrong"),
    [
        ((0.28, 0.5, 0.52, 0.7), "norm1000", True),
        ((0.0, 0.0, 1.0, 0.5), "pixel", True),
        ((-0.1, 0.2, 1.0, 1.0), "norm1000", True),
        ((0.28, 0.5, 0.52, 0.7), "unit", False),
        ((0.0, 0.0, 1.0, 1.0), "norm1000", False),
        ((0.0, 1.0, 1.0, 1.0), "pixel", False),
        ((0.5, 0.5, 1.5, 2.5), "norm1000", False),
        ((math.nan, 0.5, 0.6, 0.7), "norm1000", False),
    ],
)
def test_fractions_are_no_thousandths_and_no_pixels(row: tuple[float, ...], frame: str, wrong: bool) -> None:
    assert (unit_mistake(row, frame, SIZE) is not None) == wrong


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


@pytest.mark.parametrize(
    ("corners", "words"),
    [
        ((10, 10, 641, 20), ["box 0 (liver)", "[10, 10, 641, 20]", "outside its image of 640x480 px", "clip it"]),
        ((-1, 10, 41, 20), ["outside its image", "[-1, 10, 41, 20]"]),
        ((100, 10, 40, 20), ["corners are reversed", "[100, 10, 40, 20]", "write [40, 10, 100, 20]", "x1 <= x2"]),
        ((10, 90, 40, 20), ["corners are reversed", "write [10, 20, 40, 90]"]),
        ((10, math.nan, 40, 20), ["[10, nan, 40, 20]", "not a finite number", "drop the box"]),
        ((10, 1, math.inf, 20), ["not a finite number"]),
    ],
)
def test_an_impossible_box_is_named_with_its_cure(corners: tuple[float, ...], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        one(*corners)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_limits_are_those_of_the_frame() -> None:
    one(0, 0, 640, 480), one(0, 0, 1000, 1000, frame="norm1000"), one(0, 0, 1, 1, frame="unit")
    for frame, far in (("norm1000", 1001), ("unit", 1.1)):
        with pytest.raises(ValueError, match=f"frame '{frame}' ends at"):
            one(0, 0, far, 1, frame=frame)
    with pytest.raises(ValueError, match="unknown box frame 'percent': use one of pixel, norm1000, unit"):
        one(0, 0, 1, 1, frame="percent")


@pytest.mark.parametrize("size", [(0, 5), (5.5, 5), (5,), (math.nan, 4)])
def test_a_size_is_two_whole_numbers(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be \\(width, height\\)"):
        Boxes.empty(size)


def test_shapes_and_labels_must_agree() -> None:
    with pytest.raises(ValueError, match="2 boxes but 1 labels"):
        Boxes(torch.zeros(2, 4), "pixel", SIZE, ("a",))
    with pytest.raises(ValueError, match=r"expected \(N, 4\)"):
        Boxes(torch.zeros(2, 3), "pixel", SIZE)
    assert Boxes([[0, 0, 1, 1]], "pixel", SIZE).labels == ("",)  # type: ignore[arg-type]
    assert len(Boxes.empty(SIZE)) == 0


def test_rounding_noise_at_the_edge_is_forgiven_and_clamped() -> None:
    assert one(0, 0, 640 + 1e-7, 480).xyxy[0, 2] == 640


def test_a_box_covers_its_pixels_half_open() -> None:
    mask = torch.zeros(8, 8)
    mask[5, 3] = 1
    ys, xs = mask.nonzero(as_tuple=True)
    box = one(float(xs.min()), float(ys.min()), float(xs.max()) + 1, float(ys.max()) + 1, size=(8, 8))
    assert box.xyxy.tolist() == [[3, 5, 4, 6]] and box.area().tolist() == [1.0]


def test_crop_keeps_what_is_seen() -> None:
    boxes = Boxes(
        torch.tensor([[10, 10, 30, 30], [0, 0, 12, 12], [50, 50, 60, 60], [20, 20, 20, 20]], dtype=torch.float64),
        "pixel",
        (100, 80),
        ("inside", "corner", "gone", "point"),
    )
    assert boxes.visible_in(10, 10, 40, 40).tolist() == pytest.approx([1.0, 4 / 144, 0.0, 1.0])
    cropped = boxes.crop(10, 10, 40, 40)
    assert cropped.labels == ("inside", "point") and cropped.size == (30, 30)
    assert cropped.xyxy.tolist() == [[0, 0, 20, 20], [10, 10, 10, 10]]
    assert boxes.crop(10, 10, 40, 40, min_visible=0.0).labels == ("inside", "corner", "point")
    padded = boxes.crop(-20, -10, 100, 80)  # a window may reach beyond the image
    assert padded.size == (120, 90) and padded.xyxy[0].tolist() == [30, 20, 50, 40]
    assert boxes.to("norm1000").crop(10, 10, 40, 40) == cropped
    with pytest.raises(ValueError, match="window \\[40, 10, 10, 40\\] is empty"):
        boxes.crop(40, 10, 10, 40)


@given(boxes_of_an_image(), st.data())
@settings(max_examples=60, deadline=None)
def test_crop_agrees_with_a_painted_mask(boxes: Boxes, data: st.DataObject) -> None:
    """A box of whole pixels, painted and cropped as a picture, has the bounding box that `crop` computes."""
    width, height = 24, 18
    xs = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    ys = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    cx = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    cy = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    painted = torch.zeros(height, width)
    painted[ys[0] : ys[1], xs[0] : xs[1]] = 1
    seen = painted[cy[0] : cy[1], cx[0] : cx[1]].nonzero()
    cropped = one(xs[0], ys[0], xs[1], ys[1], size=(width, height)).crop(cx[0], cy[0], cx[1], cy[1], min_visible=1e-9)
    if len(seen) == 0:
        assert len(cropped) == 0
        return
    (y1, x1), (y2, x2) = seen.min(0).values.tolist(), (seen.max(0).values + 1).tolist()
    assert cropped.xyxy.tolist() == [[x1, y1, x2, y2]]


def test_equality_is_by_value_and_hashing_is_refused() -> None:
    assert one(1, 2, 3, 4) == one(1, 2, 3, 4)
    assert one(1, 2, 3, 4) != one(1, 2, 3, 5) and one(1, 2, 3, 4) != one(1, 2, 3, 4, label="spleen")
    with pytest.raises(TypeError):
        hash(one(1, 2, 3, 4))


def test_select_and_relabel() -> None:
    boxes = Boxes(torch.tensor([[0, 0, 1, 1], [1, 1, 2, 2]], dtype=torch.float64), "pixel", SIZE, ("a", "b"))
    assert boxes.select([1]).labels == ("b",) and boxes.select([1]).xyxy.tolist() == [[1, 1, 2, 2]]
    assert boxes.with_labels(("c", "d")).labels == ("c", "d")
    assert len(boxes.select([])) == 0

"""Boxes: frames, conversions, windows, and the messages about boxes that cannot be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core.boxes import FRAMES, Boxes, unit_mistake

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

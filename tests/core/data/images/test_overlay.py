"""Overlays: the boxes stand where they should, both kinds can be told apart, and the sheet says what it is not for."""

from functools import partial

import numpy as np
import pytest
import torch

from medmo_core.boxes import Boxes
from medmo_core.data.images.geometry import Geometry
from medmo_core.data.images.overlay import LINE_HEIGHT, PREDICTED_COLOUR, TRUE_COLOUR, beside, overlay_boxes
from medmo_core.notice import PICTURE_NOTICE

PIXELS = np.full((100, 200, 3), 90, dtype=np.uint8)


def boxes(*rows: tuple[float, float, float, float], size: tuple[int, int] = (200, 100)) -> Boxes:
    return Boxes(torch.tensor(rows, dtype=torch.float64).reshape(-1, 4), "pixel", size, ("",) * len(rows))


def extent(sheet: np.ndarray, colour: tuple[int, int, int]) -> list[int]:
    """First and last column and row in which a colour occurs inside the picture (100 px high, 4-fold, no title)."""
    ys, xs = np.nonzero((sheet[:400] == colour).all(-1))
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


@pytest.mark.parametrize("kind", ["truth", "predicted"])
def test_a_box_is_drawn_on_its_edges(kind: str) -> None:
    colour = {"truth": TRUE_COLOUR, "predicted": PREDICTED_COLOUR}[kind]
    sheet = np.asarray(overlay_boxes(PIXELS, min_side=400, **{kind: boxes((20, 10, 60, 80))}))  # type: ignore[arg-type]
    assert sheet.shape[1] == 800
    assert np.abs(np.subtract(extent(sheet, colour), [80, 40, 240, 320])).max() <= 2


def test_boxes_of_thousandths_land_in_the_same_place() -> None:
    truth = boxes((20, 10, 60, 80))
    pixel, thousandths = (np.asarray(overlay_boxes(PIXELS, truth=b)) for b in (truth, truth.to("norm1000")))
    assert np.array_equal(pixel, thousandths)


def test_true_and_predicted_differ_even_without_colour() -> None:
    box = boxes((20, 10, 180, 90))
    true = np.asarray(overlay_boxes(PIXELS, truth=box, min_side=400))
    said = np.asarray(overlay_boxes(PIXELS, predicted=box, min_side=400))
    solid = (true[40:41, 80:720] == TRUE_COLOUR).all(-1).mean()
    dashed = (said[40:41, 80:720] == PREDICTED_COLOUR).all(-1).mean()
    assert solid == 1.0 and 0.3 < dashed < 0.8


def test_the_footer_and_odd_labels_fit() -> None:
    assert "Research use only" in PICTURE_NOTICE
    odd = Boxes(torch.tensor([[0.0, 0, 0, 0], [199, 99, 200, 100]]), "pixel", (200, 100), ("\u809d\u0000\n" * 50, "x"))
    geometry = Geometry((0, 0, 0), (1, 0, 0), (0, 1, 0), (200, 100))
    plain = overlay_boxes(PIXELS)
    full = overlay_boxes(PIXELS, odd, odd, title="a very long title " * 20, geometry=geometry)
    assert full.width == plain.width and full.height > plain.height
    assert np.asarray(plain)[-18:].max() > 200  # something is written at the foot


def test_tiny_pictures_are_enlarged_and_wrong_sizes_refused() -> None:
    assert overlay_boxes(np.zeros((3, 2, 3), np.uint8)).height > 300
    with pytest.raises(ValueError, match="boxes of a 10x10 image cannot be drawn on one of 200x100"):
        overlay_boxes(PIXELS, boxes((0, 0, 1, 1), size=(10, 10)))


def test_footers_of_sheets_side_by_side_are_on_one_line() -> None:
    low, high = np.zeros((100, 200, 3), np.uint8), np.zeros((300, 200, 3), np.uint8)
    box = boxes((20, 10, 180, 90))
    tall = boxes((20, 10, 180, 290), size=(200, 300))
    sheet = np.asarray(
        beside([partial(overlay_boxes, low, box, title="a"), partial(overlay_boxes, high, tall, title="b")])
    )
    left = np.asarray(overlay_boxes(low, box, title="a"))
    legends = [part[-40:] for part in (left, sheet[:, : left.shape[1]], sheet[:, left.shape[1] :])]
    width = min(part.shape[1] for part in legends)
    assert np.array_equal(legends[0], legends[1])
    assert all(np.array_equal(part[:, :width], legends[0][:, :width]) for part in legends)
    assert np.array_equal(sheet[:100, : left.shape[1]], left[:100])


@pytest.mark.parametrize("title", ["", "t"])
def test_a_narrow_picture_stands_in_the_middle_below_its_title(title: str) -> None:
    sheet = np.asarray(overlay_boxes(PIXELS[:, :100], min_side=100, title=title))
    grey = (sheet == 90).all(-1)
    rows, columns = np.nonzero(grey.sum(1) >= 100)[0], np.nonzero(grey.sum(0) >= 100)[0]
    assert (sheet.shape[1], columns.min(), columns.max()) == (280, 90, 189)
    assert len(rows) == 100 and rows.min() == (LINE_HEIGHT + 4 if title else 0)

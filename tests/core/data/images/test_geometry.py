"""From displayed pixels to the patient and back, on oblique and flipped volumes, through crops and resizes."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core.boxes import Boxes
from medmo_core.data.images.geometry import Geometry
from medmo_core.data.images.load import load_image

nibabel = pytest.importorskip("nibabel")


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    rotation, _ = np.linalg.qr(
        np.asarray(draw(st.lists(st.floats(-1, 1), min_size=9, max_size=9))).reshape(3, 3) + 2 * np.eye(3)
    )
    flips = np.asarray(draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 2)))
    spacing = np.asarray(draw(st.tuples(st.floats(0.1, 8), st.floats(0.1, 8)))) * flips
    origin = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    size = draw(st.tuples(st.integers(4, 600), st.integers(4, 600)))
    return Geometry(origin, tuple(rotation[:, 0] * spacing[0]), tuple(rotation[:, 1] * spacing[1]), size)


@given(geometries(), st.data())
@settings(max_examples=80, deadline=None)
def test_a_box_comes_back_from_the_patient(geometry: Geometry, data: st.DataObject) -> None:
    width, height = geometry.size
    xs = sorted(data.draw(st.floats(0, width)) for _ in range(2))
    ys = sorted(data.draw(st.floats(0, height)) for _ in range(2))
    boxes = Boxes(torch.tensor([[xs[0], ys[0], xs[1], ys[1]]], dtype=torch.float64), "pixel", geometry.size)
    corners = boxes.to_patient(geometry)
    assert corners.shape == (1, 4, 3)
    back = geometry.to_pixel(corners)[0]
    expected = torch.tensor([[xs[0], ys[0]], [xs[1], ys[0]], [xs[1], ys[1]], [xs[0], ys[1]]], dtype=torch.float64)
    assert (back - expected).abs().max() < 1e-6
    assert geometry.distance_mm(corners).abs().max() < 1e-6
    sides = (corners[0, 1] - corners[0, 0]).norm(), (corners[0, 3] - corners[0, 0]).norm()
    for side, pixels, spacing in zip(sides, (xs[1] - xs[0], ys[1] - ys[0]), geometry.spacing_mm, strict=True):
        assert math.isclose(float(side), pixels * spacing, abs_tol=1e-6)


@given(geometries(), st.data())
@settings(max_examples=60, deadline=None)
def test_crop_and_resize_move_boxes_and_geometry_alike(geometry: Geometry, data: st.DataObject) -> None:
    """What is said to whole thousandths on a cropped, resized picture lies within half a pixel in the patient."""
    width, height = geometry.size
    x0, y0 = data.draw(st.integers(0, width - 3)), data.draw(st.integers(0, height - 3))
    x1, y1 = data.draw(st.integers(x0 + 2, width)), data.draw(st.integers(y0 + 2, height))
    size = data.draw(st.tuples(st.integers(1, 900), st.integers(1, 900)))
    boxes = Boxes(
        torch.tensor([[x0 + 0.5, y0 + 0.25, x1 - 0.5, y1 - 1.0]], dtype=torch.float64), "pixel", geometry.size
    )
    moved = boxes.crop(x0, y0, x1, y1).resize(size)
    there = geometry.crop(x0, y0, x1, y1).resize(size)
    assert (moved.to_patient(there) - boxes.to_patient(geometry)).abs().max() < 1e-6
    rounded = Boxes(moved.to("norm1000").xyxy.round(), "norm1000", size)
    in_pixels = geometry.to_pixel(rounded.to_patient(there)) - geometry.to_pixel(boxes.to_patient(geometry))
    assert in_pixels.abs().max() <= 0.5 * max(x1 - x0, y1 - y0, 1) / 1000 + 1e-6


def test_dicom_numbers_are_centres_and_rows_come_first() -> None:
    geometry = Geometry.from_dicom([-100, -50, 7], [1, 0, 0, 0, 1, 0], [2.0, 0.5], (10, 20))
    assert geometry.spacing_mm == (0.5, 2.0)
    assert geometry.to_patient(torch.tensor([0.5, 0.5])).tolist() == [-100, -50, 7]  # centre of the first pixel
    assert geometry.to_patient(torch.tensor([3.5, 1.5])).tolist() == [-98.5, -48, 7]
    assert geometry.edges == {"left": "R", "right": "L", "top": "A", "bottom": "P"} and geometry.plane == "axial"


def test_a_geometry_of_another_size_is_refused() -> None:
    geometry = Geometry((0, 0, 0), (1, 0, 0), (0, 1, 0), (10, 10))
    with pytest.raises(ValueError, match="20x10 image cannot use the geometry of a 10x10 one"):
        Boxes.empty((20, 10)).to_patient(geometry)


@pytest.mark.parametrize("y_mm", [(2.0, 0.0, 0.0), (0.0, 0.0, 0.0), (math.nan, 1.0, 0.0)])
def test_impossible_directions_are_refused(y_mm: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="geometry"):
        Geometry((0, 0, 0), (1, 0, 0), y_mm, (10, 10))


def write_volume(path: Path, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A volume whose value at a voxel is its running number, so that a displayed pixel tells which voxel it is."""
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    nibabel.Nifti1Image(values, affine).to_filename(path)
    return values


def oblique(signs: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray:
    """Voxel axes in any order and direction, turned by about 15 degrees about every patient axis."""
    angle = 0.26
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = (turn @ np.diag([0.7, 1.3, 2.5]) @ np.diag(signs))[:, list(order)]
    affine[:3, 3] = [12.0, -40.0, 5.0]
    return affine


ORIENTATIONS = [(s, o) for s in itertools.product((1, -1), repeat=3) for o in ((0, 1, 2), (2, 0, 1), (1, 0, 2))]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_every_displayed_pixel_lies_where_its_voxel_does(tmp_path: Path, plane: str) -> None:
    """Oracle: the affine alone. The grey level of a pixel names its voxel; its centre must be that voxel's centre."""
    for number, (signs, order) in enumerate(ORIENTATIONS):
        affine = oblique(signs, order)
        path = tmp_path / f"{plane}{number}.nii"
        shape = (5, 6, 7)
        write_volume(path, affine, shape)
        for index in (0, 2):
            # 210 voxels fit into 8 bits, and this window maps every number to itself.
            loaded = load_image(path, slice_index=index, plane=plane, window=(128, 256))
            assert loaded.geometry is not None and loaded.geometry.size == loaded.size
            numbers = loaded.pixels[..., 0].astype(int)
            voxels = np.stack(np.unravel_index(numbers, shape), axis=-1)
            ras = voxels @ affine[:3, :3].T + affine[:3, 3]
            height, width = numbers.shape
            ys, xs = np.mgrid[0:height, 0:width] + 0.5
            lps = loaded.geometry.to_patient(torch.from_numpy(np.stack([xs, ys], axis=-1))).numpy()
            assert np.abs(lps * [-1, -1, 1] - ras).max() < 1e-4, (signs, order, index)
        sides = loaded.geometry.edges
        assert (
            sides
            == {
                "axial": {"left": "R", "right": "L", "top": "A", "bottom": "P"},
                "coronal": {"left": "R", "right": "L", "top": "H", "bottom": "F"},
                "sagittal": {"left": "A", "right": "P", "top": "H", "bottom": "F"},
            }[plane]
        )


def test_slices_count_from_the_feet(tmp_path: Path) -> None:
    for sign in (1, -1):
        affine = np.diag([1.0, 1.0, 2.0 * sign, 1.0])
        write_volume(tmp_path / "v.nii", affine, (4, 4, 3))
        heights = [load_image(tmp_path / "v.nii", slice_index=i).geometry.origin_mm[2] for i in range(3)]  # type: ignore[union-attr]
        assert heights == sorted(heights) and heights[1] - heights[0] == 2

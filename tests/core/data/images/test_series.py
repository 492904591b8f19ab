"""A folder of DICOM slices is the volume that a NIfTI file of the same values is, or says why it is none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmo_core.data.images.load import ImageError, load_image
from medmo_core.data.images.sizes import stored_size
from medmo_core.data.records.sample import ImageRef

nibabel, pydicom = pytest.importorskip("nibabel"), pytest.importorskip("pydicom")
WriteDicom = Callable[..., Path]
VALUES = np.random.default_rng(0).integers(-500, 500, (6, 8, 7)).astype(np.int16)  # column, row, slice
SPACING = (0.5, 0.75, 2.0)
DIRECTIONS = {
    "axial": [1, 0, 0, 0, 1, 0],
    "coronal": [1, 0, 0, 0, 0, -1],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "oblique": [0.8, 0.6, 0, -0.6, 0.8, 0],
    "prone": [-1, 0, 0, 0, -1, 0],
}


def place(direction: str, number: float) -> dict[str, Any]:
    """Tags of a slice's place: two direction cosines, and a step along their normal."""
    cosines = np.array(DIRECTIONS[direction], float)
    normal = np.cross(cosines[:3], cosines[3:])
    position = np.array([10.0, -20.0, 30.0]) + number * SPACING[2] * normal
    return {
        "ImageOrientationPatient": cosines.tolist(),
        "ImagePositionPatient": position.tolist(),
        "PixelSpacing": [SPACING[1], SPACING[0]],  # rows first
    }


@pytest.fixture
def write_series(write_dicom: WriteDicom, tmp_path: Path) -> Callable[..., Path]:
    def write(direction: str = "axial", name: str = "series", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        order = np.random.default_rng(1).permutation(VALUES.shape[2])  # names say nothing of the order
        for number in range(VALUES.shape[2]):
            tags = {**place(direction, number), "Modality": "MR", "RescaleSlope": "2", "RescaleIntercept": "-3"}
            tags |= changes.get(f"slice_{number}", {})
            write_dicom(folder / f"1.2.840.{order[number]}.dcm", VALUES[..., number].T.copy(), **tags)
        return folder

    return write


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_a_folder_equals_a_volume_file(tmp_path: Path, write_series: Callable[..., Path], direction: str) -> None:
    folder = write_series(direction)
    (folder / "LICENSE.txt").write_text("not a picture")
    cosines = np.array(DIRECTIONS[direction], float)
    lps = np.eye(4)
    lps[:3, :3] = np.array([cosines[:3], cosines[3:], np.cross(cosines[:3], cosines[3:])]).T * SPACING
    lps[:3, 3] = [10, -20, 30]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    nibabel.Nifti1Image((VALUES * 2.0 - 3.0).astype(np.float32), affine).to_filename(tmp_path / "v.nii")
    for plane in ("axial", "coronal", "sagittal"):
        for index in (None, 0, 5):
            ours, theirs = (
                load_image(path, plane=plane, slice_index=index, window=(30, 900))
                for path in (folder, tmp_path / "v.nii")
            )
            assert np.array_equal(ours.pixels, theirs.pixels)
            assert ours.geometry is not None and theirs.geometry is not None
            for name in ("origin_mm", "x_mm", "y_mm", "size"):
                assert getattr(ours.geometry, name) == pytest.approx(getattr(theirs.geometry, name), abs=1e-4)
        assert stored_size(ImageRef("series", plane=plane), tmp_path) == ours.size
        assert ours.info["modality"] == "MR" and ours.info["plane"] == plane


def test_an_own_slice_is_shown_as_its_file_is(write_series: Callable[..., Path]) -> None:
    """Windows, padding and polarity of its own header included."""
    own = {"WindowCenter": 100, "WindowWidth": 300, "PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 9}
    folder = write_series(slice_3=own)
    file = next(path for path in folder.iterdir() if "WindowCenter" in pydicom.dcmread(path))
    assert np.array_equal(load_image(folder, slice_index=3).pixels, load_image(file).pixels)
    across = load_image(folder, plane="coronal")  # shown as the middle slice is, which is this one
    assert across.info["windows"] == [(100.0, 300.0)]
    unit = np.clip((VALUES[:, 8 // 2 - 1, ::-1].T * 2.0 - 3 - 99.5) / 299 + 0.5, 0, 1)
    unpadded = across.pixels[[0, 1, 2, 4, 5, 6], :, 0]
    assert np.array_equal(unpadded, np.rint(255 * (1 - unit))[[0, 1, 2, 4, 5, 6]])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slice_3": place("axial", 3.5)}, r"1\.2\.840\.\d\.dcm and .* are 3\.00 mm apart, others 2\.00 mm"),
        ({"slice_6": place("axial", 8)}, r"are 6\.00 mm apart, others 2\.00 mm: slices are missing"),
        ({"slice_2": place("axial", 4)}, "lie in the same place"),
        ({"slice_2": {"SeriesInstanceUID": "1.2.9"}}, "holds 2 DICOM series, of (1, 6|6, 1) files"),
        ({"slice_2": place("coronal", 2)}, "lies in another direction"),
        ({"slice_2": {"PixelSpacing": [0.75, 0.6]}}, "another pixel spacing along x"),
        ({"slice_2": {"ImagePositionPatient": None}}, "does not state its place in the patient"),
        ({"slice_2": {"ImagePositionPatient": [19, -20, 34]}}, "do not lie in one line"),
    ],
)
def test_what_is_no_volume_says_why(write_series: Callable[..., Path], changes: dict[str, Any], words: str) -> None:
    folder = write_series(**changes)
    with pytest.raises(ImageError, match=words) as caught:
        load_image(folder)
    assert str(folder) in str(caught.value) and "1.2.9" not in str(caught.value)


def test_an_empty_file_that_is_called_a_slice_is_a_lost_one(write_series: Callable[..., Path]) -> None:
    folder = write_series()
    (folder / "notes").touch()
    assert load_image(folder, plane="coronal").size[1] == VALUES.shape[2]
    (folder / "8.dcm").touch()
    with pytest.raises(ImageError, match=r"8\.dcm: not a"):
        load_image(folder)


def test_slices_of_other_sizes_frames_and_colours_are_refused(
    write_series: Callable[..., Path], write_dicom: WriteDicom
) -> None:
    folder = write_series()
    odd = folder / "odd.dcm"
    for words, tags, said in (
        (np.zeros((3, 4), np.int16), {}, "slices of different sizes"),
        (np.zeros((8, 6), np.int16), {"NumberOfFrames": 2}, "several frames"),
        (np.zeros((8, 6), np.uint8), {"PhotometricInterpretation": "PALETTE COLOR"}, "colour picture"),
    ):
        write_dicom(odd, words, **place("axial", 9), **tags)
        with pytest.raises(ImageError, match=said):
            load_image(folder)
    odd.unlink()
    assert load_image(folder).size == (6, 8)
    with pytest.raises(ImageError, match="slice_index is 7, but there are 7 axial slices"):
        load_image(folder, slice_index=7)
    with pytest.raises(ImageError, match="choose a slice of a folder with slice_index=1"):
        load_image(folder, frame=1)


def test_a_link_out_of_the_root_is_refused(tmp_path: Path, write_series: Callable[..., Path]) -> None:
    folder = write_series()
    (tmp_path / "root").mkdir()
    linked = tmp_path / "root" / "linked"
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file)
    assert load_image(linked).size == (6, 8)
    with pytest.raises(ImageError, match="leaves the data root"):
        load_image("linked", root=tmp_path / "root")

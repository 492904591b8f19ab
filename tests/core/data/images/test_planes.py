"""Planes through volumes against nibabel's canonical order, units and unplaced headers, and slices in their order."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from medmo_core.data.images import volume
from medmo_core.data.images.geometry import Geometry
from medmo_core.data.images.load import ImageError, load_image
from medmo_core.data.images.sizes import stored_size
from medmo_core.data.records.sample import ImageRef

nibabel = pytest.importorskip("nibabel")
from nibabel.orientations import axcodes2ornt, inv_ornt_aff  # noqa: E402

SHAPE = (4, 5, 6)
CODES = [
    "".join(code)
    for order in itertools.permutations(("LR", "PA", "IS"))
    for code in list(itertools.product(*order))[:: 3 if order[0] == "LR" else 7]
]


@pytest.mark.parametrize("code", CODES)
def test_every_slice_stands_in_canonical_order_and_is_turned_for_display(tmp_path: Path, code: str) -> None:
    """Oracle: nibabel's as_closest_canonical, whose axes run to the patient's right, front and head."""
    values = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    affine = inv_ornt_aff(axcodes2ornt(code), SHAPE)
    image = nibabel.Nifti1Image(values, affine)
    image.to_filename(tmp_path / "v.nii")
    canonical = np.asarray(nibabel.as_closest_canonical(image).dataobj)
    turned = {
        "axial": lambda k: canonical[::-1, ::-1, k].T,  # the patient's right on the left, the front up
        "coronal": lambda k: canonical[::-1, k, ::-1].T,
        "sagittal": lambda k: canonical[k, ::-1, ::-1].T,
    }
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        for k in range(canonical.shape[axis]):
            # These numbers fit into 8 bits, and this window maps every number to itself.
            loaded = load_image(tmp_path / "v.nii", plane=plane, slice_index=k, window=(128, 256))
            assert np.array_equal(loaded.pixels[..., 0], turned[plane](k)), (plane, k)
        assert stored_size(ImageRef("v.nii", plane=plane), tmp_path) == loaded.size


def test_a_distance_from_a_plane_is_in_millimetres() -> None:
    """Whatever the size of a pixel: the normal has length one."""
    half = Geometry((1.0, 2.0, 3.0), (0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (10, 10))
    assert half.distance_mm(torch.tensor([[7.0, -9.0, 11.0], [0.0, 0.0, 1.0]])).tolist() == [8.0, -2.0]
    turned = Geometry((0.0, 0.0, 0.0), (3.0, 4.0, 0.0), (0.0, 0.0, 2.0), (10, 10))
    assert turned.distance_mm(torch.tensor([8.0, -6.0, 5.0])).item() == pytest.approx(10.0)


@pytest.mark.parametrize(("unit", "millimetres"), [("mm", 1.0), ("unknown", 1.0), ("micron", 1e-3), ("meter", 1e3)])
def test_the_header_says_which_unit_its_affine_is_in(tmp_path: Path, unit: str, millimetres: float) -> None:
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), np.diag([2.0, 3.0, 4.0, 1.0]))
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "v.nii")
    loaded = load_image(tmp_path / "v.nii")
    assert loaded.geometry is not None
    assert loaded.geometry.spacing_mm == loaded.info["spacing_mm"] == pytest.approx((2 * millimetres, 3 * millimetres))


@pytest.mark.parametrize(("qform", "sform"), [(0, 0), (1, 0), (0, 2)])
def test_a_volume_that_states_no_place_claims_none(tmp_path: Path, qform: int, sform: int) -> None:
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.uint8).reshape(SHAPE), affine)
    image.set_qform(affine, qform)
    image.set_sform(affine, sform)
    image.to_filename(tmp_path / "v.nii")
    loaded = load_image(tmp_path / "v.nii")
    placed = qform > 0 or sform > 0
    assert loaded.size == (4, 5)
    assert (loaded.geometry is not None, "plane" in loaded.info) == (placed, placed)
    assert loaded.info["spacing_mm"] == ((2.0, 3.0) if placed else None)


@pytest.mark.parametrize("sform", [0, 1])
@pytest.mark.parametrize(("kind", "place", "zero"), [("Nifti1Image", 84, 4), ("Nifti2Image", 120, 8)])
def test_a_voxel_without_a_size_claims_no_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str, place: int, zero: int, sform: int
) -> None:
    """Of a qform, that is; nibabel makes up a millimetre. A sform states sizes itself."""
    image = getattr(nibabel, kind)(np.arange(120, dtype=np.uint8).reshape(SHAPE), np.diag([2.0, 3.0, 4.0, 1.0]))
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, sform)
    image.to_filename(tmp_path / "v.nii")
    assert load_image(tmp_path / "v.nii").info["spacing_mm"] == (2.0, 3.0)
    data = bytearray((tmp_path / "v.nii").read_bytes())
    data[place : place + zero] = bytes(zero)
    (tmp_path / "v.nii").write_bytes(data)
    assert load_image(tmp_path / "v.nii").info["spacing_mm"] == ((2.0, 3.0) if sform else None)
    assert capfd.readouterr() == ("", "")


def test_an_mgh_volume_without_orientation_claims_no_place(tmp_path: Path) -> None:
    image = nibabel.MGHImage(np.arange(120, dtype=np.uint8).reshape(SHAPE), np.diag([2.0, 3.0, 4.0, 1.0]))
    image.to_filename(tmp_path / "v.mgh")
    assert load_image(tmp_path / "v.mgh").geometry is not None
    data = bytearray((tmp_path / "v.mgh").read_bytes())
    data[28:30] = b"\0\0"  # goodRASFlag
    (tmp_path / "v.mgh").write_bytes(data)
    loaded = load_image(tmp_path / "v.mgh")
    assert loaded.geometry is None and loaded.info["spacing_mm"] is None


def test_slabs_hold_the_whole_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read piece by piece equals what is read at once, percentiles and their sampling included."""
    values = np.random.default_rng(0).normal(size=(6, 7, 20)).astype(np.float32)
    for name in ("a.nii", "a.nii.gz", "b.nii.gz"):
        nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / name)
    at_once = [load_image(tmp_path / "a.nii", plane=plane).pixels for plane in ("axial", "coronal", "sagittal")]
    monkeypatch.setattr(volume, "SLAB_VOXELS", 6 * 7 * 3)
    pieces = [load_image(tmp_path / "a.nii.gz", plane=plane).pixels for plane in ("axial", "coronal", "sagittal")]
    assert all(np.array_equal(one, other) for one, other in zip(at_once, pieces, strict=True))
    monkeypatch.setattr(volume, "SAMPLED_VOXELS", 200)
    sampled = values.ravel()[:: values.size // 200]
    low, high = np.percentile(sampled, [0.5, 99.5])
    shown = np.rint(np.clip((values[::-1, ::-1, 10].T - low) / (high - low), 0, 1) * 255)
    assert np.array_equal(load_image(tmp_path / "b.nii.gz").pixels[..., 0], shown)


def test_a_volume_of_colours_takes_no_window(tmp_path: Path) -> None:
    voxels = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    voxels["G"] = 7
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "v.nii")
    for plane in ("axial", "coronal", "sagittal"):
        assert (load_image(tmp_path / "v.nii", plane=plane).pixels == [0, 7, 0]).all()
    with pytest.raises(ImageError, match=r"v\.nii.*takes no window"):
        load_image(tmp_path / "v.nii", window=(1, 2))

"""One file read in two ways gives two pictures, and what is decoded in full shows what a header hides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmo_core.data import picture_cache
from medmo_core.data.images.load import ImageError, check_image, load_image
from medmo_core.data.images.sizes import stored_size
from medmo_core.data.picture_cache import PictureCache
from medmo_core.data.records.sample import ImageRef


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).normal(0, 100, (9, 10, 11, 2)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "v.nii")
    return tmp_path / "v.nii"


@pytest.mark.parametrize(
    "other",
    [
        {"window": (50.0, 20.0)},
        {"window": ("lung", "bone", "brain")},
        {"slice_index": 1},
        {"plane": "coronal"},
        {"frame": 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_every_setting_of_a_reference_is_part_of_the_key(volume: Path, other: dict[str, Any]) -> None:
    cache = PictureCache(10**6)
    first, second = ImageRef(volume.name), ImageRef(volume.name, **other)
    for reference in (first, second, first, second):
        own = {name: getattr(reference, name) for name in ("window", "slice_index", "plane", "frame")}
        assert np.array_equal(cache.load(reference, volume.parent), load_image(volume, **own).pixels)
    assert len(cache.pictures) == 2


def test_crops_of_one_picture_decode_it_once(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, calls = PictureCache(10**6), []
    load = picture_cache.load_whole
    monkeypatch.setattr(picture_cache, "load_whole", lambda *call: calls.append(call) or load(*call))
    for crop in (None, (0, 0, 3, 3), (1, 1, 5, 4)):
        size = {} if crop is None else {"width": crop[2] - crop[0], "height": crop[3] - crop[1]}
        cache.load(ImageRef(volume.name, crop=crop, **size), volume.parent)
    assert len(calls) == 1


def test_a_cut_picture_has_a_size_and_fails_the_full_check(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert check_image(ImageRef("a.png"), tmp_path) == (64, 48)
    with pytest.raises(ImageError, match="outside the picture"):
        check_image(ImageRef("a.png", crop=(70, 0, 80, 10)), tmp_path)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    assert stored_size(ImageRef("a.png"), tmp_path) == (64, 48)
    with pytest.raises(ImageError, match=r"a\.png.*truncated"):
        check_image(ImageRef("a.png"), tmp_path)

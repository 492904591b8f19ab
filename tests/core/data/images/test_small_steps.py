"""The small steps of reading a picture, each by values that are worked out by hand."""

import hashlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from medmo_core.data.images.digest import check_digest, digest_of, open_bytes
from medmo_core.data.images.intensity import (
    HOUNSFIELD_WINDOWS,
    apply_range,
    apply_window,
    declared_depth,
    percentile_range,
    read_window,
    to_grey,
)
from medmo_core.data.images.load import load_image
from medmo_core.data.images.loaded import ImageError, _Silence
from medmo_core.data.images.patches import smart_resize
from medmo_core.data.images.tiff import upright
from medmo_core.data.records.sample import ImageRef

SHA256 = hashlib.sha256(b"bytes").hexdigest()


class Store:
    """Store of one picture."""

    def open(self, path: str) -> BinaryIO:
        assert path == "a.png"
        return io.BytesIO(b"bytes")


@pytest.mark.parametrize("where", ["folder", "store", "anywhere"])
def test_a_digest_is_that_of_the_bytes_wherever_they_lie(tmp_path: Path, where: str) -> None:
    (tmp_path / "a.png").write_bytes(b"bytes")
    name = str(tmp_path / "a.png") if where == "anywhere" else "a.png"
    root: Any = {"folder": tmp_path, "store": Store(), "anywhere": None}[where]
    assert digest_of(ImageRef(name), root) == SHA256
    check_digest(ImageRef(name), root)
    check_digest(ImageRef(name, sha256=SHA256.upper()), root)
    with pytest.raises(ImageError, match=f"sha256 is {SHA256}, the record says {'0' * 64}"):
        check_digest(ImageRef(name, sha256="0" * 64), root)


def test_bytes_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png: cannot be read \(Is a directory\)"):
        open_bytes(ImageRef("folder.png"), tmp_path)
    with pytest.raises(ImageError, match=r"\.\./secret"):
        open_bytes(ImageRef("../secret.png"), tmp_path / "folder.png")


@pytest.mark.parametrize(
    ("values", "window", "function", "expected"),
    [
        # PS3.3 C.11.2.1.2: x <= c - 0.5 - (w - 1) / 2 is 0, x > c - 0.5 + (w - 1) / 2 is 1
        ([-1, 0, 50, 99, 100], (50, 100), "LINEAR", [0, 0, 0.5 + 0.5 / 99, 1, 1]),
        ([-1, 0, 25, 50, 100], (50, 100), "LINEAR_EXACT", [0, 0, 0.25, 0.5, 1]),
        ([49, 49.5, 50], (50, 1), "LINEAR", [0, 0, 1]),
        ([0, 0.25, 1], (0.5, 1), None, [0, 0.25, 1]),  # None at a width of 1: exact
        ([-0.25, 0, 0.25], (0.5, 1.5), None, [0, 0.5, 1]),
        ([50, 75], (50, 100), "SIGMOID", [0.5, 1 / (1 + np.exp(-1))]),
        ([-1e9, 1e9], (50, 1), "SIGMOID", [0, 1]),
    ],
)  # fmt: skip
def test_windows(values: list[float], window: tuple[float, float], function: str | None, expected: list[float]) -> None:
    with np.errstate(all="raise", under="ignore"):
        assert apply_window(np.array(values), window, function) == pytest.approx(expected)


@pytest.mark.parametrize(("width", "function"), [(0.5, "LINEAR"), (0, "LINEAR_EXACT"), (0, "SIGMOID"), (5, "CUBIC")])
def test_windows_that_show_nothing_are_refused(width: float, function: str) -> None:
    with pytest.raises(ValueError, match=function):
        apply_window(np.zeros(1), (0, width), function)


def test_ranges() -> None:
    assert apply_range([-1, 0, 1, 4, 5], 0, 4).tolist() == [0, 0, 0.25, 1, 1]
    assert apply_range([1, 2], 3, 3).tolist() == apply_range([1, 2], 4, 3).tolist() == [0, 0]
    assert to_grey(np.array([np.nan, -1, 0.5, 0.503, 1, 7])).tolist() == [0, 0, 128, 128, 255, 255]
    values = np.arange(201.0)
    assert percentile_range(values) == (1.0, 199.0)
    assert percentile_range(np.append(values, [np.nan, np.inf, 1e9]), np.arange(204) == 203) == (1.0, 199.0)
    assert percentile_range(np.array([np.nan])) == (0.0, 0.0)
    assert percentile_range(np.array([5] * 999 + [7])) == (5.0, 7.0)
    assert [declared_depth(v) for v in (0, 255, 256, 1023, 1024, 4095, 4096, 16383, 16384, 65535)] == [
        255, 255, 1023, 1023, 4095, 4095, 16383, 16383, 65535, 65535,
    ]  # fmt: skip
    assert declared_depth(300, bits=8) == 255 and declared_depth(3, bits=12) == 255


@pytest.mark.parametrize(
    ("window", "read"),
    [
        (None, None), ("lung", ["lung"]), (0, [0]), ((40, 400), [(40.0, 400.0)]), ([40, 400], [(40.0, 400.0)]),
        (["lung", (1, 2), 3], ["lung", (1.0, 2.0), 3]), (("lung",) * 3, ["lung"] * 3),
    ],
)  # fmt: skip
def test_window_arguments(window: object, read: object) -> None:
    assert read_window(window) == read


@pytest.mark.parametrize(
    "window", ["Lung", True, -1, 1.5, (1,), (1, 0), (1, -2), (np.nan, 2), (1, np.inf), ("a", "b"), [1, 2, True], {}]
)
def test_other_window_arguments_name_the_presets(window: object) -> None:
    with pytest.raises(ValueError, match=", ".join(HOUNSFIELD_WINDOWS)):
        read_window(window)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_what_is_transparent_shows_white(tmp_path: Path, photometric: str, kind: str) -> None:
    """Opaque, half and not at all; where 0 is white, no ink is white."""
    tifffile = pytest.importorskip("tifffile")
    share, alpha = np.array([0.4, 0.4, 0.0]), np.array([1.0, 0.5, 0.0])
    values = np.rint(np.stack([share, alpha], -1)[None] * 65535).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, extrasamples=[kind], planarconfig="contig")
    ink = share if kind == "assocalpha" else share * alpha
    shown = 1 - ink if photometric == "miniswhite" else ink + 1 - alpha
    assert load_image(tmp_path / "a.tif").pixels[0, :, 0] == pytest.approx(255 * shown, abs=0.6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pages_are_turned_as_exif_says(orientation: int) -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    image = Image.fromarray(values)
    image.getexif()[274] = orientation
    assert upright(values, orientation).tolist() == np.asarray(ImageOps.exif_transpose(image)).tolist()


@pytest.mark.parametrize(
    ("size", "budget", "expected"),
    [
        ((64, 96), (1, 10**6), (64, 96)),
        ((1, 200), (1, 10**6), (32, 32)),  # one side rounds to nothing: the rule of least pixels
        ((100, 100), (64 * 64, 96 * 96), (96, 96)),
        ((112, 112), (1, 112 * 112), (96, 96)),  # 3.5 tokens round to 4, over the budget
        ((33, 33), (64 * 64, 10**6), (64, 64)),
        ((20, 640), (1, 4096), (32, 352)),  # no side falls below a token, though both together leave the budget
    ],
)
def test_sizes_keep_to_the_budget(size: tuple[int, int], budget: tuple[int, int], expected: tuple[int, int]) -> None:
    assert smart_resize(*size, factor=32, min_pixels=budget[0], max_pixels=budget[1]) == expected


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((0, 5), {}), ((5, 0), {}), ((1, 201), {}), ((201, 1), {}), ((5, 5), {"factor": 0}),
        ((5, 5), {"min_pixels": 0}), ((5, 5), {"min_pixels": 11, "max_pixels": 10}),
    ],
)  # fmt: skip
def test_impossible_sizes_are_refused(size: tuple[int, int], settings: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        smart_resize(*size, **{"factor": 32, "min_pixels": 1, "max_pixels": 10**6, **settings})
    smart_resize(1, 200, factor=1, min_pixels=1, max_pixels=1000)


@pytest.mark.parametrize("library", ["pydicom", "nibabel.global", "tifffile"])
def test_the_last_reader_lets_libraries_speak_again(recwarn: pytest.WarningsRecorder, library: str) -> None:
    silence, logger = _Silence(), logging.getLogger(library)
    for was_disabled in (False, True):
        logger.disabled = was_disabled
        silence.enter()
        silence.enter()
        silence.leave()
        warnings.warn("of a header", stacklevel=1)
        assert logger.disabled and not recwarn.list
        silence.leave()
        assert logger.disabled == was_disabled and silence.num_readers == 0
    logger.disabled = False
    warnings.warn("heard", stacklevel=1)
    assert [str(warning.message) for warning in recwarn.list] == ["heard"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slice_index": "a"}, "slice_index is 'a', expected a whole number"),
        ({"frame": 1.0}, r"frame is 1\.0, expected a whole number"), ({"frame": True}, "frame is True"),
        ({"plane": 0}, "plane is 0, expected axial, coronal or sagittal"),
    ],
)  # fmt: skip
def test_choices_of_another_type_are_named(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=rf"a\.png: {words}"):
        load_image(tmp_path / "a.png", **settings)


def test_frames_of_a_picture_that_moves_are_counted(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), grey) for grey in (0, 100, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    last = load_image(tmp_path / "a.gif", frame=2)
    assert (last.info["num_frames"], last.pixels.max()) == (3, 200)


def test_a_colour_dicom_takes_no_window_and_is_named() -> None:
    examples = pytest.importorskip("pydicom.examples")
    with pytest.raises(ImageError, match=r"examples_rgb_color\.dcm: a colour picture holds no measured values"):
        load_image(examples.get_path("rgb_color"), window=(40, 400))

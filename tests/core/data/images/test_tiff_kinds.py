"""Every kind of TIFF shows the values that tifffile reads, at their full depth and in their own colours."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import TiffImagePlugin

from medmo_core.data.images import tiff
from medmo_core.data.images.load import ImageError, load_image
from medmo_core.data.images.sizes import stored_size
from medmo_core.data.records.sample import ImageRef

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
TOPS = {"u1": 255, "u2": 65535, "12 in u2": 4095}


def colours(depth: str, samples: int = 3) -> np.ndarray:
    values = RNG.integers(0, TOPS[depth] + 1, (20, 35, samples)).astype("u1" if depth == "u1" else "u2")
    values[0, 0] = TOPS[depth]
    return values


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["contig", "separate", "tiles", "separate tiles", "zlib", "separate zlib", "big"])
@pytest.mark.parametrize("depth", list(TOPS))
def test_colour_keeps_its_values(tmp_path: Path, depth: str, layout: str, order: str) -> None:
    values = colours(depth)
    options: dict[str, Any] = {"bigtiff": "big" in layout, "byteorder": order, "metadata": None}
    options |= {"tile": (16, 16)} if "tiles" in layout else {}
    options |= {"compression": "zlib", "predictor": True} if "zlib" in layout else {}
    options["planarconfig"] = "separate" if "separate" in layout else "contig"
    written = np.ascontiguousarray(np.moveaxis(values, -1, 0)) if "separate" in layout else values
    tifffile.imwrite(tmp_path / "a.tif", written, photometric="rgb", **options)
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), written)
    loaded = load_image(tmp_path / "a.tif")
    assert np.array_equal(loaded.pixels, np.rint(values / TOPS[depth] * 255))
    assert loaded.info["kind"] == "tiff" and stored_size(ImageRef("a.tif"), tmp_path) == loaded.size == (35, 20)


@pytest.mark.parametrize("kind", ["u2", "i2", "u4", "i4", "f4", "f8", "i1"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_grey_keeps_its_values(tmp_path: Path, kind: str, order: str) -> None:
    limits = (-120, 120) if kind == "i1" else (0, 60_000) if kind == "u2" else (-30_000, 30_000)
    values = RNG.uniform(*limits, (20, 35))
    values = (values + 4e9 if kind == "u4" else values).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=order, photometric="minisblack")
    low, high = (0, 65535) if kind == "u2" else np.percentile(values, [0.5, 99.5])
    expected = np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)
    assert np.array_equal(load_image(tmp_path / "a.tif").pixels[..., 0], expected)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("samples", [2, 4])
def test_transparent_parts_are_white_and_other_samples_are_left_out(tmp_path: Path, samples: int, kind: str) -> None:
    values = colours("u2", samples)
    if kind == "assocalpha":
        values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
    photometric = "rgb" if samples == 4 else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric=photometric, extrasamples=[kind], planarconfig="contig", metadata=None
    )
    unit, alpha = values[..., :-1] / 65535, values[..., -1:] / 65535
    shown = {"unassalpha": unit * alpha + 1 - alpha, "assocalpha": unit + 1 - alpha, "unspecified": unit}[kind]
    assert np.abs(load_image(tmp_path / "a.tif").pixels - shown * 255).max() <= 0.51


@pytest.mark.parametrize("opaque", [4095, 65535])
def test_transparent_parts_do_not_darken_the_rest(tmp_path: Path, opaque: int) -> None:
    values = colours("12 in u2", 4)
    values[..., 3] = opaque
    values[5, 5, 3] = 0
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"], metadata=None)
    expected = np.rint(values[..., :3] / 4095 * 255)
    expected[5, 5] = 255
    assert np.array_equal(load_image(tmp_path / "a.tif").pixels, expected)


def test_a_deep_palette_is_looked_up(tmp_path: Path) -> None:
    palette = RNG.integers(0, 65536, (3, 65536)).astype("u2")
    values = RNG.integers(0, 65536, (20, 35)).astype("u2")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="palette", colormap=palette)
    expected = np.rint(np.moveaxis(palette[:, values], 0, -1) / 65535 * 255)
    assert np.array_equal(load_image(tmp_path / "a.tif").pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_pages_are_turned_as_pillow_turns_shallow_ones(tmp_path: Path, orientation: int) -> None:
    values = colours("u2")
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "deep.tif", values, photometric="rgb", extratags=tag, metadata=None)
    shallow = np.rint(values / 65535 * 255).astype("u1")
    tifffile.imwrite(tmp_path / "shallow.tif", shallow, photometric="rgb", extratags=tag, metadata=None)
    assert np.array_equal(load_image(tmp_path / "deep.tif").pixels, load_image(tmp_path / "shallow.tif").pixels)
    for name in ("deep.tif", "shallow.tif"):
        assert stored_size(ImageRef(name), tmp_path) == load_image(tmp_path / name).size


def test_declared_depth_counts_for_colour_too(tmp_path: Path) -> None:
    values = (colours("12 in u2") // 4).astype("u2")
    tag = [(281, "H", 3, (4095,) * 3, True)]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extratags=tag, metadata=None)
    assert np.array_equal(load_image(tmp_path / "a.tif").pixels, np.rint(values / 4095 * 255))


def test_what_cannot_be_shown_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "inks.tif", colours("u2", 4), photometric="separated", metadata=None)
    with pytest.raises(ImageError, match=r"inks\.tif.*save it as grey or RGB"):
        load_image(tmp_path / "inks.tif")
    tifffile.imwrite(tmp_path / "deep.tif", colours("u2"), photometric="rgb", metadata=None)
    with pytest.raises(ImageError, match=r"deep\.tif.*takes no window"):
        load_image(tmp_path / "deep.tif", window=(40, 400))
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(ModuleNotFoundError, match=r'deep\.tif.*needs tifffile: pip install "medmo\[medical\]"'):
        load_image(tmp_path / "deep.tif")


def many_pages(count: int, *, circle: bool = False) -> bytes:
    """A TIFF of one-pixel pages that share their pixel."""
    entries = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (279, 1)]
    page = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    size = len(page) + 4
    tables = [page + struct.pack("<I", 12 + size * (n + 1) if n + 1 < count else 12 * circle) for n in range(count)]
    return b"II*\0" + struct.pack("<I", 12) + b"\x7f\0\0\0" + b"".join(tables)


def test_pages_are_counted_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tif").write_bytes(many_pages(2000))
    seeks: list[int] = []
    seek = TiffImagePlugin.TiffImageFile._seek
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "_seek", lambda self, n: seeks.append(n) or seek(self, n))
    loaded = load_image(tmp_path / "a.tif")
    assert loaded.info["num_frames"] == 2000 and (loaded.pixels == 0x7F).all() and set(seeks) == {0}
    assert load_image(tmp_path / "a.tif", frame=1999).info["num_frames"] == 2000
    with pytest.raises(ImageError, match="frame is 2000, but there are 2000 frames"):
        load_image(tmp_path / "a.tif", frame=2000)
    for data in (many_pages(tiff.MAX_PAGES + 1), many_pages(3, circle=True)):
        (tmp_path / "b.tif").write_bytes(data)
        with pytest.raises(ImageError, match=r"b\.tif.*pages.*split the file"):
            load_image(tmp_path / "b.tif")


def test_a_pgm_knows_its_depth(tmp_path: Path) -> None:
    values = RNG.integers(0, 300, (4, 5)).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 5 4 4095\n" + values.tobytes())
    assert np.abs(load_image(tmp_path / "a.pgm").pixels[..., 0] - values / 4095 * 255).max() <= 0.51

"""PNG, JPEG, TIFF and NIfTI to uint8 RGB, and the words for what cannot be read."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmo_core.data.images.intensity import apply_window, declared_depth, percentile_range, read_window, to_grey
from medmo_core.data.images.load import ImageError, LoadedImage, crop_pixels, from_pillow, load_image, safe_path

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (11, 17, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "webp"])
def test_lossless_colour_is_kept(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(COLOUR).save(tmp_path / f"a.{suffix}", **options)
    loaded = load_image(f"a.{suffix}", root=tmp_path)
    assert np.array_equal(loaded.pixels, COLOUR) and loaded.size == (17, 11)
    assert loaded.geometry is None and loaded.info["num_frames"] == 1


def test_jpeg_grey_palette_and_transparency(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(COLOUR).resize((64, 48)))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=98, subsampling=0)
    assert np.abs(load_image(tmp_path / "a.jpg").pixels.astype(int) - smooth).mean() < 3
    Image.fromarray(COLOUR[..., 0]).save(tmp_path / "g.png")
    assert np.array_equal(load_image(tmp_path / "g.png").pixels, np.repeat(COLOUR[..., :1], 3, axis=-1))
    palette = Image.fromarray(COLOUR).convert("P")
    palette.save(tmp_path / "p.png")
    assert np.array_equal(load_image(tmp_path / "p.png").pixels, np.asarray(palette.convert("RGB")))
    clear = Image.fromarray(np.dstack([COLOUR, np.zeros((11, 17), np.uint8)]), "RGBA")
    clear.save(tmp_path / "t.png")
    assert (load_image(tmp_path / "t.png").pixels == 255).all()


def test_exif_orientation_is_obeyed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "a.png").pixels, np.rot90(COLOUR, -1))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_scaled_by_the_depth_and_not_by_the_image(tmp_path: Path, suffix: str) -> None:
    full = np.linspace(0, 65535, 300).reshape(15, 20).astype(np.uint16)
    Image.fromarray(full).save(tmp_path / f"full.{suffix}")
    assert np.array_equal(load_image(tmp_path / f"full.{suffix}").pixels[..., 1], np.rint(full / 65535 * 255))
    for top in (4095, 3000):  # two pictures of one 12-bit detector get one scale
        deep = np.linspace(0, top, 300).reshape(15, 20).astype(np.uint16)
        Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
        assert np.array_equal(load_image(tmp_path / f"deep.{suffix}").pixels[..., 0], np.rint(deep / 4095 * 255))
    windowed = load_image(tmp_path / f"full.{suffix}", window=(30000, 10000)).pixels[..., 0]
    assert np.array_equal(windowed, np.rint(np.clip((full - 29999.5) / 9999 + 0.5, 0, 1) * 255))
    with pytest.raises(ImageError, match="not in Hounsfield units"):
        load_image(tmp_path / f"full.{suffix}", window="lung")


def test_tiff_declarations_pages_and_16_bit_colour(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    deep = np.linspace(0, 900, 300).reshape(15, 20).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "declared.tif", tiffinfo={281: 1023})
    assert np.array_equal(load_image(tmp_path / "declared.tif").pixels[..., 0], np.rint(deep / 1023 * 255))
    tifffile.imwrite(tmp_path / "white.tif", deep, photometric="miniswhite")
    assert np.array_equal(load_image(tmp_path / "white.tif").pixels[..., 0], 255 - np.rint(deep / 1023 * 255))
    colour = RNG.integers(0, 65536, (9, 8, 3), dtype=np.uint16)
    colour[0, 0] = 65535
    tifffile.imwrite(tmp_path / "colour.tif", colour, photometric="rgb")
    assert np.abs(load_image(tmp_path / "colour.tif").pixels.astype(float) - colour / 257).max() <= 1
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([deep, deep[::-1]]), photometric="minisblack")
    assert load_image(tmp_path / "pages.tif").info["num_frames"] == 2
    second = load_image(tmp_path / "pages.tif", frame=1).pixels
    assert np.array_equal(second, load_image(tmp_path / "pages.tif").pixels[::-1])
    with pytest.raises(ImageError, match=r"pages.tif: frame is 2, but there are 2 frames \(0 to 1\)"):
        load_image(tmp_path / "pages.tif", frame=2)
    signed = (deep.astype(np.int16) - 300).astype(np.int16)
    tifffile.imwrite(tmp_path / "signed.tif", signed)
    low, high = np.percentile(signed, [0.5, 99.5])
    expected = np.rint(np.clip((signed - low) / (high - low), 0, 1) * 255)
    assert np.array_equal(load_image(tmp_path / "signed.tif").pixels[..., 0], expected)


PASSES = {
    "plain": [(0, 0, 1, 1)],
    "Adam7": [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)],
}


def deep_png(values: np.ndarray, order: str, clear: tuple[int, ...] = ()) -> bytes:
    """A PNG file of samples (H, W, C) of 16 bits, each row as its difference to the row above."""
    height, width, samples = values.shape
    rows = b""
    for x, y, step_x, step_y in PASSES[order]:
        part = np.ascontiguousarray(values[y::step_y, x::step_x].astype(">u2"))
        octets = part.view(np.uint8).reshape(len(part), -1)
        up = np.diff(octets, axis=0, prepend=np.zeros_like(octets[:1]))  # modulo 256
        rows += b"".join(b"\2" + row.tobytes() for row in up)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[samples], 0, 0, order == "Adam7")
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">3H", *clear) if clear else b"")]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    crcs = [(kind + data, zlib.crc32(kind + data)) for kind, data in chunks if data or kind == b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", k) for c, k in crcs)


@pytest.mark.parametrize("order", PASSES)
@pytest.mark.parametrize("samples", [2, 3, 4])
@pytest.mark.parametrize("largest", [4095, 65535])
def test_a_png_of_16_bits_a_colour_keeps_its_values(tmp_path: Path, largest: int, samples: int, order: str) -> None:
    values = np.random.default_rng(0).integers(0, largest + 1, (13, 17, samples)).astype(np.uint16)
    values[0, 0] = largest
    unit, alpha = values / largest, 1.0
    if samples != 3:
        values[..., -1] = np.linspace(0, 65535, 13 * 17).reshape(13, 17)
        unit, alpha = values[..., :-1] / largest, values[..., -1:] / 65535
    else:
        unit[5, 5] = 1
    (tmp_path / "a.png").write_bytes(deep_png(values, order, tuple(values[5, 5]) if samples == 3 else ()))
    pixels = load_image(tmp_path / "a.png").pixels
    assert np.abs(pixels - (unit * alpha + 1 - alpha) * 255).max() <= 0.51
    with pytest.raises(ImageError, match="Pillow reads its values at 8 bits"):
        from_pillow(Image.open(tmp_path / "a.png"))


def test_crop_moves_pixels_and_pads_with_black() -> None:
    assert np.array_equal(crop_pixels(COLOUR, (2, 3, 9, 8)), COLOUR[3:8, 2:9])
    padded = crop_pixels(COLOUR, (-2, -1, 19, 12))
    assert padded.shape == (13, 21, 3) and np.array_equal(padded[1:12, 2:19], COLOUR)
    assert padded.sum() == COLOUR.sum()
    for window, words in (((5, 5, 5, 8), "is empty"), ((17, 0, 20, 5), "lies outside the picture of 17x11 px")):
        with pytest.raises(ImageError, match=words):
            crop_pixels(COLOUR, window)


def message(path: object, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "nowhere.png: no such file" in message("nowhere.png", root=tmp_path)
    assert "a folder without DICOM slices" in message(tmp_path)
    assert "File name too long" in message("x" * 5000 + ".png")
    assert "no such user" in message("~nobody-of-that-name/a.png")
    assert "\\udcff.png: no such file" in message("\udcff.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert "a.png: is a pipe, a socket or a device" in message(tmp_path / "a.png")


def test_the_home_folder_is_expanded_outside_a_root_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    assert np.array_equal(load_image("~/a.png").pixels, COLOUR)
    assert "no such file" in message("~/a.png", root=tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
def test_a_truncated_picture_is_named(tmp_path: Path, suffix: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, {"jpg": "JPEG"}.get(suffix, suffix))
    for share in (0.5, 0.9):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
        text = message(path)
        assert f"cut.{suffix}" in text and ("truncated or damaged" in text or "damaged" in text)


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_answered_with_what_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert "not a picture of a supported kind (PNG, JPEG" in message(tmp_path / "a.png")


def bomb(path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_an_image_bomb_is_refused_unopened(tmp_path: Path, side: int) -> None:
    bomb(tmp_path / "bomb.png", side, side)
    assert "image bomb?" in message(tmp_path / "bomb.png")


def test_the_limit_can_be_set(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    assert "17x11 px is over the limit of 100 pixels" in message(tmp_path / "a.png", max_pixels=100)
    assert load_image(tmp_path / "a.png", max_pixels=17 * 11).size == (17, 11)


@pytest.mark.parametrize(
    "path", ["../secret.png", "a/../../secret.png", "/etc/passwd", "..\\secret.png", "C:\\secret.png", "a\0.png"]
)
def test_a_path_out_of_the_root_is_refused(tmp_path: Path, path: str) -> None:
    text = message(path, root=tmp_path / "root")
    assert "leaves the data root" in text and "relative" in text


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Image.fromarray(COLOUR).save(tmp_path / "secret.png")
    Image.fromarray(COLOUR).save(root / "own.png")
    (root / "file.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "inside.png").symlink_to(root / "own.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    for name in ("file.png", "folder/secret.png"):
        assert "leaves the data root" in message(name, root=root) and "through a link" in message(name, root=root)
    assert load_image("inside.png", root=root).size == (17, 11)
    message("loop.png", root=root)
    assert safe_path("anything", None) == Path("anything")


def test_options_that_do_not_fit_are_named(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    assert "slice_index is for volumes" in message(tmp_path / "a.png", slice_index=3)
    assert "frame is 1, but there are 1 frames" in message(tmp_path / "a.png", frame=1)
    assert "takes no window" in message(tmp_path / "a.png", window=(40, 400))
    for bad in ("chest", (40, -1), (40,), True, -1, ("lung", "bone")):
        text = message(tmp_path / "a.png", window=bad)
        assert "is not known: use one of lung, soft_tissue" in text and "a.png" in text


def test_windows_follow_the_standards_formulas() -> None:
    values = np.array([-160.5, -160.0, -60.0, 39.5, 40.0, 239.0, 239.6, 1000.0])
    linear = apply_window(values, (40, 400), "LINEAR")
    by_hand = [0 if x <= 39.5 - 199.5 else 1 if x > 39.5 + 199.5 else (x - 39.5) / 399 + 0.5 for x in values]
    assert linear.tolist() == pytest.approx(by_hand)
    exact = apply_window(values, (40, 400), "LINEAR_EXACT")
    assert exact.tolist() == pytest.approx([0 if x <= -160 else 1 if x > 240 else (x - 40) / 400 + 0.5 for x in values])
    sigmoid = apply_window(values, (40, 400), "SIGMOID")
    assert sigmoid.tolist() == pytest.approx((1 / (1 + np.exp(-4 * (values - 40) / 400))).tolist())
    assert apply_window(np.array([9.0, 9.5, 9.6]), (10, 1), "LINEAR").tolist() == [0, 0, 1]
    assert apply_window(np.array([0.0, 0.5, 0.75]), (0.5, 1)).tolist() == [0, 0.5, 0.75]  # scaled volumes
    with pytest.raises(ValueError, match="unknown window function 'CUBIC'"):
        apply_window(values, (1, 2), "CUBIC")


def test_percentiles_leave_padding_out() -> None:
    values = np.concatenate([np.arange(1000.0), np.full(5000, -2000.0), [np.nan]])
    assert percentile_range(values, values == -2000) == pytest.approx((4.995, 994.005))
    assert percentile_range(np.zeros(5), np.ones(5, bool)) == (0.0, 0.0)
    assert percentile_range(np.array([0.0] * 999 + [7.0])) == (0.0, 7.0)  # nearly everything is one value


def test_depth_and_grey() -> None:
    assert [declared_depth(v) for v in (0, 255, 256, 1023, 4095, 4096, 20000)] == [
        255,
        255,
        1023,
        1023,
        4095,
        16383,
        65535,
    ]
    assert to_grey(np.array([-1.0, 0.5, 2.0, np.nan])).tolist() == [0, 128, 255, 0]
    assert read_window(["lung", [40, 80], 1]) == ["lung", (40.0, 80.0), 1]


def test_info_admits_only_safe_fields() -> None:
    with pytest.raises(AssertionError, match="PatientName"):
        LoadedImage(COLOUR, None, {"PatientName": "x"})


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    nibabel = pytest.importorskip("nibabel")
    values = RNG.normal(0, 300, (9, 8, 7, 2)).astype(np.int16)
    nibabel.Nifti1Image(values, np.diag([-1.5, -1.5, 3, 1])).to_filename(tmp_path / "v.nii.gz")
    return tmp_path / "v.nii.gz"


def test_a_volume_is_scaled_as_a_whole(volume: Path) -> None:
    import nibabel

    values = nibabel.load(volume).get_fdata()
    low, high = np.percentile(values[..., 1], [0.5, 99.5])
    shown = load_image(volume, slice_index=3, frame=1)
    expected = np.rint(np.clip((values[:, :, 3, 1].T - low) / (high - low), 0, 1) * 255)  # the file is stored L, P, S
    assert np.array_equal(shown.pixels[..., 0], expected)
    assert shown.info == {"kind": "volume", "spacing_mm": (1.5, 1.5), "num_frames": 2, "plane": "axial", "windows": []}
    lung = load_image(volume, slice_index=3, window="lung").pixels[..., 0]
    assert np.array_equal(lung, np.rint(np.clip((values[:, :, 3, 0].T + 600.5) / 1499 + 0.5, 0, 1) * 255))
    three = load_image(volume, slice_index=3, window=["lung", "soft_tissue", (0, 100)]).pixels
    assert np.array_equal(three[..., 0], lung) and not np.array_equal(three[..., 1], lung)
    assert np.array_equal(load_image(volume).pixels, load_image(volume, slice_index=3, frame=0).pixels)


def test_a_cropped_slice_keeps_its_place(volume: Path) -> None:
    whole, part = load_image(volume), load_image(volume, crop=(2, 1, 8, 12))
    assert np.array_equal(part.pixels[:7], whole.pixels[1:8, 2:8]) and part.size == (6, 11)
    assert whole.geometry is not None and part.geometry is not None
    import torch

    here, there = torch.tensor([0.0, 0.0]), torch.tensor([2.0, 1.0])
    assert torch.allclose(part.geometry.to_patient(here), whole.geometry.to_patient(there))
    assert part.geometry.size == part.size


def test_what_a_volume_cannot_give_is_named(volume: Path, tmp_path: Path) -> None:
    assert "slice_index is 7, but there are 7 axial slices (0 to 6)" in message(volume, slice_index=7)
    assert "slice_index is -1" in message(volume, slice_index=-1)
    assert "9 sagittal slices" in message(volume, slice_index=9, plane="sagittal")
    assert "frame is 2, but there are 2 time points" in message(volume, frame=2)
    assert "plane is 'oblique', expected one of axial, coronal, sagittal" in message(volume, plane="oblique")
    assert "states no windows" in message(volume, window=0)
    assert "over the limit of 50 pixels" in message(volume, max_pixels=50)
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(volume.read_bytes()[:900])
    assert "truncated or damaged" in message(cut)
    (tmp_path / "none.nii").write_bytes(b"nothing")
    assert "not a readable NIfTI or MGH file" in message(tmp_path / "none.nii")


def test_the_display_range_of_the_header_is_honoured(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.float32).reshape(4, 3, 2), np.diag([-1, -1, 1, 1]))
    image.header["cal_min"], image.header["cal_max"] = 0, 48
    image.to_filename(tmp_path / "v.nii")
    expected = np.rint(image.get_fdata()[:, :, 0].T / 48 * 255)
    assert np.array_equal(load_image(tmp_path / "v.nii", slice_index=0).pixels[..., 0], expected)

"""Every way from a stored value to a grey level or a colour, against pydicom's own steps and the standard's bits."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medmo_core.data.images.load import ImageError, load_image

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi_lut  # noqa: E402
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian  # noqa: E402

RNG = np.random.default_rng(0)
WriteDicom = Callable[..., Path]
MODALITIES = ["slope 1", "slope -1", "slope -10", "slope 2.5", "table"]
WINDOW = {"WindowCenter": 60, "WindowWidth": 90}


def table_item(entries: NDArray[Any], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries.tolist())
    item.LUTExplanation = item.ModalityLUTType = "US"
    return item


def stored_words(bits: int, signed: bool) -> NDArray[Any]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    kind = ("i" if signed else "u") + ("1" if bits <= 8 else "2")
    words = RNG.integers(low, high, (9, 8)).astype(kind)
    words[0, :2] = low, high - 1
    return words


def unit_as_pydicom_says(path: Path, voi: str) -> NDArray[np.float64]:
    """Grey levels in 0..1 before polarity, by pydicom's steps."""
    ds = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = apply_modality_lut(ds.pixel_array.astype(np.int64), ds)  # in narrow types its indices wrap around
    if voi == "table":
        return apply_voi_lut(np.rint(values).clip(-999, 999).astype(np.int64), ds) / 1023.0  # or they wrap around
    if voi == "window":
        half = np.clip((values - 59.5) / 89 + 0.5, 0, 1)
        theirs = apply_voi_lut(values, ds)
        span = float(half.max() - half.min())  # pydicom spreads a window over the range of what can be stored
        if span == 1.0:
            assert (
                np.abs((theirs - theirs[half == 0][0]) / (theirs[half == 1][0] - theirs[half == 0][0]) - half).max()
                < 1e-9
            )
        return half
    if ds.BitsStored <= 8:
        whole = np.arange(-128, 128) if ds.PixelRepresentation else np.arange(256)
        ends = apply_modality_lut(whole, ds)
        return (values - ends.min()) / (ends.max() - ends.min())
    low, high = np.percentile(values, [0.5, 99.5])
    return np.clip((values - low) / (high - low), 0, 1)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_every_stage_is_gone_through(
    tmp_path: Path, write_dicom: WriteDicom, bits: int, signed: bool, modality: str
) -> None:
    words = stored_words(bits, signed)
    tags: dict[str, Any] = {"BitsStored": bits}
    if modality == "table":
        falling = np.linspace(200, 3, min(2**bits // 2, 999)).astype(np.uint16)
        tags["ModalityLUTSequence"] = [table_item(falling, int(words.min()) + 5, 16)]
    else:
        tags |= {"RescaleSlope": modality.split()[1], "RescaleIntercept": "7"}
    vois = {"none": {}, "window": WINDOW, "table": {"VOILUTSequence": [table_item(np.arange(900, 0, -3), -20, 10)]}}
    for voi, own in vois.items():
        for polarity in ("MONOCHROME1", "MONOCHROME2"):
            path = write_dicom(tmp_path / "a.dcm", words, **tags, **own, PhotometricInterpretation=polarity)
            unit = unit_as_pydicom_says(path, voi)
            expected = 255.0 * (1 - unit if polarity == "MONOCHROME1" else unit)
            shown = load_image(path).pixels
            assert np.abs(shown - expected[..., None]).max() <= 0.5 + 1e-6, (voi, polarity)
            if voi == "window":
                asked = load_image(path, window=(60, 90)).pixels
                assert np.array_equal(asked, shown)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("allocated", "stored", "high"), [(16, 12, 15), (16, 12, 13), (16, 10, 9), (8, 6, 7), (8, 5, 5)]
)
def test_samples_are_taken_from_where_the_header_says(
    tmp_path: Path, write_dicom: WriteDicom, allocated: int, stored: int, high: int, signed: bool
) -> None:
    """PS3.5 8.1.1: HighBit is the place of a sample's most significant bit; what stands around it is no picture."""
    words = RNG.integers(0, 2**allocated, (9, 8)).astype(f"u{allocated // 8}")
    samples = (words.astype(int) >> (high - stored + 1)) & (2**stored - 1)
    if signed:
        samples = np.where(samples >= 2 ** (stored - 1), samples - 2**stored, samples)
    tags = {"BitsStored": stored, "HighBit": high, "PixelRepresentation": int(signed)}
    path = write_dicom(tmp_path / "a.dcm", words, **tags)
    window = (3.0, 0.7 * 2**stored)
    expected = np.rint(255 * np.clip((samples - (window[0] - 0.5)) / (window[1] - 1) + 0.5, 0, 1))
    assert np.array_equal(load_image(path, window=window).pixels[..., 1], expected)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("syntax", [None, ExplicitVRBigEndian], ids=["little", "big"])
def test_a_palette_is_read_in_the_files_byte_order(
    tmp_path: Path, write_dicom: WriteDicom, syntax: str | None, bits: int
) -> None:
    indices = RNG.integers(0, 256, (9, 8)).astype(np.uint8)
    colours = RNG.integers(0, 2**bits, (3, 200)).astype(f"u{bits // 8}")
    order = ">" if syntax else "<"
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, row in zip(("Red", "Green", "Blue"), colours, strict=True):
        data = row.astype(f"{order}u2").tobytes()
        if bits == 8:  # two entries in one word, the first in its low byte
            data = row.view("<u2").astype(f"{order}u2").tobytes()
        tags |= {
            f"{name}PaletteColorLookupTableDescriptor": [200, 30, bits],
            f"{name}PaletteColorLookupTableData": data,
        }
    path = write_dicom(tmp_path / "a.dcm", indices, syntax=syntax, **tags)
    expected = colours[:, np.clip(indices.astype(int) - 30, 0, 199)] >> (bits - 8)
    assert np.array_equal(load_image(path).pixels, np.moveaxis(expected, 0, -1))
    with pytest.raises(ImageError, match="takes no window"):
        load_image(path, window=(40, 400))


def test_a_deflated_file_is_read_as_it_was(tmp_path: Path, write_dicom: WriteDicom) -> None:
    words = stored_words(12, True)
    plain, deflated = (
        load_image(write_dicom(tmp_path / f"{name}.dcm", words, syntax=syntax, **WINDOW))
        for name, syntax in (("a", None), ("b", DeflatedExplicitVRLittleEndian))
    )
    assert np.array_equal(plain.pixels, deflated.pixels)


def test_text_is_not_called_a_report(tmp_path: Path) -> None:
    (tmp_path / "notes.dcm").write_text("These are my notes about the scan, and nothing else.\n" * 9)
    with pytest.raises(ImageError, match=r"notes\.dcm: not a (readable )?DICOM file"):
        load_image(tmp_path / "notes.dcm")


@pytest.mark.parametrize(
    ("slope", "written", "words"),
    [
        ("2.5", "2,5", "RescaleSlope is not a number"),
        ("2.5", "x.5", "RescaleSlope is not a number"),
        ("0", "0", "RescaleSlope is 0"),
    ],
)
def test_a_slope_that_is_none_is_refused(
    tmp_path: Path, write_dicom: WriteDicom, slope: str, written: str, words: str
) -> None:
    path = write_dicom(tmp_path / "a.dcm", stored_words(12, False), RescaleSlope=slope, RescaleIntercept="7")
    path.write_bytes(path.read_bytes().replace(b"DS\4\0" + slope.encode(), b"DS\4\0" + written.encode()))
    with pytest.raises(ImageError, match=rf"a\.dcm: {words}"):
        load_image(path)


@pytest.mark.parametrize("kind", ["HSV", "YBR_PARTIAL_422"])
def test_colours_that_are_not_made_rgb_are_refused(tmp_path: Path, write_dicom: WriteDicom, kind: str) -> None:
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": kind}
    path = write_dicom(tmp_path / "a.dcm", RNG.integers(0, 256, (9, 8, 3)).astype(np.uint8), **tags)
    with pytest.raises(ImageError, match="its colours are none of RGB,|cannot be decoded"):
        load_image(path)


def test_padding_of_signed_pixels_may_be_stated_as_unsigned(tmp_path: Path, write_dicom: WriteDicom) -> None:
    words = stored_words(12, True)
    words[:3] = -2000
    path = write_dicom(tmp_path / "a.dcm", words, PixelPaddingValue=-2000)
    signed = load_image(path).pixels
    data = path.read_bytes()
    assert data.count(b"\x28\0\x20\1SS") == 1
    path.write_bytes(data.replace(b"\x28\0\x20\1SS", b"\x28\0\x20\1US"))
    assert pydicom.dcmread(path).PixelPaddingValue == 63536
    assert np.array_equal(load_image(path).pixels, signed) and (signed[:3] == 0).all()
    low, high = np.percentile(words[3:], [0.5, 99.5])
    assert np.array_equal(signed[3:, :, 0], np.rint(255 * np.clip((words[3:] - low) / (high - low), 0, 1)))

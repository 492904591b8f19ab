"""DICOM as it is meant to be shown, against pydicom's own steps and the standard's formulas; nobody's name anywhere."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medmo_core.data.images.load import SAFE_FIELDS, ImageError, LoadedImage, load_image

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage  # noqa: E402

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
SECRET = "Zzyzx^Quillon"


def make(path: Path, values: np.ndarray, **tags: Any) -> Path:
    """Write a small DICOM file of a person with a name that is easy to find again."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.PatientName, ds.PatientID, ds.InstitutionName = SECRET, "Zzyzx77", "Zzyzx Clinic"
    ds.StudyDescription, ds.PatientBirthDate = "Follow-up of Zzyzx", "19010203"
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    ds.Modality, ds.SamplesPerPixel, ds.PhotometricInterpretation = "MR", 1, "MONOCHROME2"
    ds.Rows, ds.Columns = values.shape[-2:]
    if values.ndim == 3:
        ds.NumberOfFrames = values.shape[0]
    ds.BitsAllocated = values.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = ds.BitsAllocated, ds.BitsAllocated - 1
    ds.PixelRepresentation = int(values.dtype.kind == "i")
    ds.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def item(**tags: Any) -> Dataset:
    ds = Dataset()
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


RAMP = np.arange(-1000, 1000, dtype=np.int16).reshape(40, 50)


def grey(loaded: LoadedImage) -> np.ndarray:
    assert np.array_equal(loaded.pixels[..., 0], loaded.pixels[..., 2])
    return loaded.pixels[..., 0].astype(np.float64)


def message(path: Path, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_bigendian.dcm",
        "693_J2KI.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "examples_overlay.dcm",
    ],
)
def test_real_windows_equal_pydicoms(name: str) -> None:
    """pydicom windows onto the range of the stored bits times the slope; ours is that, scaled to 0..255."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(BUNDLED / name)
        theirs = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds)
    if ds.PixelRepresentation:
        low, high = -(2 ** (ds.BitsStored - 1)), 2 ** (ds.BitsStored - 1) - 1
    else:
        low, high = 0, 2**ds.BitsStored - 1
    slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
    low, high = low * slope + intercept, high * slope + intercept
    expected = (theirs - low) / (high - low) * 255
    padding = ds.pixel_array == ds.PixelPaddingValue if "PixelPaddingValue" in ds else np.zeros(theirs.shape, bool)
    assert np.abs(grey(load_image(BUNDLED / name)) - expected)[~padding].max() <= 0.5 + 1e-6


def test_window_comes_after_rescale(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a.dcm",
        RAMP,
        Modality="CT",
        RescaleSlope=2,
        RescaleIntercept=-24,
        WindowCenter=[40, 300],
        WindowWidth=[400, 1500],
    )
    hounsfield = RAMP * 2.0 - 24

    def expected(center: float, width: float) -> np.ndarray:
        return np.rint(np.clip((hounsfield - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255)

    assert np.array_equal(grey(load_image(path)), expected(40, 400))
    assert np.array_equal(grey(load_image(path, window=1)), expected(300, 1500))
    assert np.array_equal(grey(load_image(path, window="lung")), expected(-600, 1500))
    assert np.array_equal(grey(load_image(path, window=(10, 20))), expected(10, 20))
    three = load_image(path, window=["lung", 1, (10, 20)]).pixels
    assert [
        int(np.abs(three[..., c] - expected(*w)).max()) for c, w in enumerate([(-600, 1500), (300, 1500), (10, 20)])
    ] == [0, 0, 0]
    assert load_image(path).info["windows"] == [(40.0, 400.0), (300.0, 1500.0)]
    assert "window index is 2, but the file has 2 windows" in message(path, window=2)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_files_window_function_is_obeyed(tmp_path: Path, function: str) -> None:
    path = make(tmp_path / "a.dcm", RAMP, WindowCenter=100, WindowWidth=300, VOILUTFunction=function)
    unit = {
        "LINEAR": np.clip((RAMP - 99.5) / 299 + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((RAMP - 100) / 300 + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (RAMP - 100.0) / 300)),
    }[function]
    assert np.array_equal(grey(load_image(path)), np.rint(unit * 255))


def test_a_lookup_table_goes_before_a_window(tmp_path: Path) -> None:
    table = (np.arange(100) ** 2 // 10).astype(np.uint16)
    lut = item(LUTDescriptor=[100, 10, 10], LUTData=table.tolist())
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    values = np.arange(0, 130, dtype=np.uint16).reshape(10, 13)
    path = make(tmp_path / "a.dcm", values, VOILUTSequence=[lut], WindowCenter=5, WindowWidth=10)
    theirs = apply_voi_lut(values, pydicom.dcmread(path), prefer_lut=True)
    assert np.array_equal(grey(load_image(path)), np.rint(theirs / 1023 * 255))
    modality = item(LUTDescriptor=[100, 10, 16], LUTData=table.tolist(), ModalityLUTType="US")
    modality["LUTDescriptor"].VR = modality["LUTData"].VR = "US"
    path = make(tmp_path / "b.dcm", values, ModalityLUTSequence=[modality], WindowCenter=400, WindowWidth=800)
    looked_up = apply_modality_lut(values, pydicom.dcmread(path))
    assert np.array_equal(grey(load_image(path)), np.rint(np.clip((looked_up - 399.5) / 799 + 0.5, 0, 1) * 255))


def test_monochrome1_is_inverted_and_padding_stays_black(tmp_path: Path) -> None:
    values = np.arange(0, 400, dtype=np.uint16).reshape(20, 20)
    normal = grey(load_image(make(tmp_path / "a.dcm", values, WindowCenter=200, WindowWidth=300)))
    tags = {"WindowCenter": 200, "WindowWidth": 300, "PhotometricInterpretation": "MONOCHROME1"}
    inverted = grey(load_image(make(tmp_path / "b.dcm", values, **tags)))
    assert np.abs(inverted - (255 - normal)).max() <= 1 and inverted[0, 0] == 255
    padded = grey(load_image(make(tmp_path / "c.dcm", values, PixelPaddingValue=0, PixelPaddingRangeLimit=9, **tags)))
    assert (padded[0, :10] == 0).all() and np.array_equal(padded[0, 10:], inverted[0, 10:])


def test_without_a_window_percentiles_leave_padding_out(tmp_path: Path) -> None:
    values = np.arange(0, 2000, dtype=np.int16).reshape(40, 50)
    values[:20] = -2000
    body = values[20:]
    low, high = np.percentile(body, [0.5, 99.5])
    shown = grey(load_image(make(tmp_path / "a.dcm", values, PixelPaddingValue=-2000)))
    assert (
        np.array_equal(shown[20:], np.rint(np.clip((body - low) / (high - low), 0, 1) * 255))
        and (shown[:20] == 0).all()
    )
    ct = make(tmp_path / "b.dcm", RAMP, Modality="CT")
    assert np.array_equal(grey(load_image(ct)), grey(load_image(ct, window="soft_tissue")))
    eight = np.arange(50, 150, dtype=np.uint8).reshape(10, 10)
    assert np.array_equal(grey(load_image(make(tmp_path / "c.dcm", eight, Modality="OT"))), eight)
    broken = make(tmp_path / "d.dcm", RAMP, WindowCenter=5, WindowWidth=0)
    assert np.array_equal(grey(load_image(broken)), grey(load_image(make(tmp_path / "e.dcm", RAMP))))
    assert "in Hounsfield units, but the modality is MR" in message(tmp_path / "a.dcm", window="lung")


def test_colour_leaves_palette_and_ybr() -> None:
    ds = pydicom.dcmread(BUNDLED / "examples_palette.dcm")
    palette = apply_color_lut(ds.pixel_array, ds)
    shift = 8 if palette.dtype == np.uint16 else 0
    assert np.array_equal(load_image(BUNDLED / "examples_palette.dcm").pixels, palette >> shift)
    last = load_image(BUNDLED / "examples_ybr_color.dcm", frame=29)
    assert np.array_equal(last.pixels, pixel_array(BUNDLED / "examples_ybr_color.dcm", index=29))
    rgb = load_image(BUNDLED / "SC_rgb_rle.dcm").pixels
    deep = load_image(BUNDLED / "SC_rgb_rle_16bit.dcm").pixels
    ybr = load_image(BUNDLED / "SC_ybr_full_422_uncompressed.dcm").pixels
    assert np.array_equal(rgb, pydicom.dcmread(BUNDLED / "SC_rgb_rle.dcm").pixel_array)
    assert np.abs(rgb.astype(int) - deep).max() <= 1
    assert np.median(np.abs(rgb.astype(int) - ybr)) <= 2


def test_frames_are_chosen_and_counted(tmp_path: Path) -> None:
    frames = np.stack([np.full((4, 5), 10 * k, dtype=np.uint8) for k in range(3)])
    path = make(tmp_path / "a.dcm", frames)
    assert [int(load_image(path, frame=k).pixels.max()) for k in range(3)] == [0, 10, 20]
    assert load_image(path).info["num_frames"] == 3 and load_image(path).pixels.max() == 0
    for frame in (3, -1):
        assert f"frame is {frame}, but there are 3 frames (0 to 2)" in message(path, frame=frame)


def test_every_frame_has_its_own_place_and_window(tmp_path: Path) -> None:
    frames = np.stack([np.arange(20, dtype=np.uint16).reshape(4, 5)] * 2)
    orientation = item(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    shared = item(PlaneOrientationSequence=[orientation], PixelMeasuresSequence=[item(PixelSpacing=[2, 0.5])])
    per_frame = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[1, 2 + 10 * k, 3])],
            FrameVOILUTSequence=[item(WindowCenter=10 + k, WindowWidth=20 - 10 * k)],
            PixelValueTransformationSequence=[item(RescaleSlope=1 + k, RescaleIntercept=0)],
        )
        for k in range(2)
    ]
    tags = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": per_frame}
    path = make(tmp_path / "a.dcm", frames, **tags)
    for k in range(2):
        loaded = load_image(path, frame=k)
        assert loaded.geometry is not None
        assert loaded.geometry.to_patient(torch.tensor([0.5, 0.5])).tolist() == [1, 2 + 10 * k, 3]
        assert loaded.info["spacing_mm"] == (0.5, 2.0) and loaded.info["plane"] == "coronal"
        values = frames[0] * (1.0 + k)
        assert np.array_equal(grey(loaded), np.rint(np.clip((values - 9.5 - k) / (19 - 10 * k) + 0.5, 0, 1) * 255))


def test_real_slices_know_their_place() -> None:
    loaded = load_image(BUNDLED / "CT_small.dcm", crop=(10, 20, 60, 90))
    ds = pydicom.dcmread(BUNDLED / "CT_small.dcm")
    assert loaded.geometry is not None and loaded.size == (50, 70)
    first = [float(v) for v in ds.ImagePositionPatient]
    step = float(ds.PixelSpacing[0])
    place = loaded.geometry.to_patient(torch.tensor([0.5, 0.5])).tolist()
    assert place == pytest.approx([first[0] + 10 * step, first[1] + 20 * step, first[2]])
    assert loaded.geometry.edges["right"] == "L"
    assert load_image(BUNDLED / "JPEG2000.dcm").geometry is None  # a bone scan without a position


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm", "JPEGLSNearLossless_08.dcm"])
def test_a_missing_decoder_is_named_with_its_cure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders.base import Decoder

    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    text = message(BUNDLED / name)
    assert "compressed as JPEG" in text and "pip install pylibjpeg" in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MR_truncated.dcm", "truncated or damaged"),
        ("rtplan.dcm", "holds no image"),
        ("reportsi.dcm", "holds no image"),
        ("badVR.dcm", "cannot be decoded"),
    ],
)
def test_what_cannot_be_shown_is_named(name: str, words: str) -> None:
    assert words in message(BUNDLED / name) and name in message(BUNDLED / name)


def test_cut_files_and_bombs_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a.dcm", RAMP)
    whole = path.read_bytes()
    for size in (0, 100, 140, 400, len(whole) - 100):
        (tmp_path / "cut.dcm").write_bytes(whole[:size])
        assert "cut.dcm" in message(tmp_path / "cut.dcm")
    assert "50x40 px is over the limit of 1000 pixels" in message(path, max_pixels=1000)
    huge = make(tmp_path / "huge.dcm", RAMP, Rows=60_000, Columns=60_000)
    assert "60000x60000 px is over the limit" in message(huge)


def test_old_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    path = make(tmp_path / "a.dcm", RAMP, WindowCenter=0, WindowWidth=500)
    ds = pydicom.dcmread(path)
    del ds.file_meta
    ds.preamble = None
    bare = tmp_path / "bare.dcm"
    ds.save_as(bare, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert bare.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(load_image(bare).pixels, load_image(path).pixels)


def spoilt(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Files that make readers complain, each of a person with a name."""
    folder = path.parent
    good = make(path, RAMP)
    raw = good.read_bytes()
    (folder / "cut.dcm").write_bytes(raw[: len(raw) // 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad_number = make(folder / "number.dcm", RAMP, WindowCenter=1, WindowWidth=2, PatientAge="Zzyzx Z")
        bad_frames = make(folder / "frames.dcm", RAMP, RescaleSlope=1, PatientWeight=1)
    bad_frames.write_bytes(bad_frames.read_bytes().replace(b"MONOCHROME2 ", b"Zzyzx^Quill "))
    bodies = make(folder / "body.dcm", RAMP, BodyPartExamined="CHEST", ViewPosition="PA")
    bodies.write_bytes(bodies.read_bytes().replace(b"CHEST", b"Zzyzx"))
    return [
        (good, {}),
        (good, {"frame": 9}),
        (good, {"window": "lung"}),
        (folder / "cut.dcm", {}),
        (bad_number, {}),
        (bad_frames, {}),
        (bodies, {}),
    ]


def test_a_patients_name_leaves_no_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    files = spoilt(tmp_path / "a.dcm")
    assert all(b"Zzyzx" in path.read_bytes() for path, _ in files)
    capfd.readouterr()  # writing them may have complained
    texts = []
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for path, options in files:
            caplog.clear()
            del caught[:]
            try:
                loaded = load_image(path, **options)
                texts += [repr(loaded.info), repr(loaded.geometry), repr(loaded)]
                assert set(loaded.info) <= set(SAFE_FIELDS)
            except ImageError as error:
                # Nothing may ride along as a cause either: a traceback in a log prints it.
                assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
                texts.append(str(error))
            texts += [caplog.text, *(str(w.message) for w in caught)]
    out, err = capfd.readouterr()
    everything = "\n".join([*texts, out, err])
    assert "a.dcm: frame is 9" in everything and "cut.dcm" in everything
    for trace in ("Zzyzx", "Quillon", "19010203", "Zzyzx77", "Clinic"):
        assert trace not in everything, trace


def test_a_persons_tags_are_never_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, opened = pydicom.dcmread, []
    monkeypatch.setattr(
        pydicom, "dcmread", lambda *args, **options: opened.append(read(*args, **options)) or opened[-1]
    )
    load_image(make(tmp_path / "a.dcm", RAMP))
    assert len(opened) == 1 and "PixelData" in opened[0]
    assert "Zzyzx" not in str(opened[0]) and "PatientName" not in opened[0]


def test_threads_leave_warnings_and_logger_as_they_were() -> None:
    from concurrent.futures import ThreadPoolExecutor

    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load_image, [BUNDLED / "MR_small.dcm", BUNDLED / "examples_palette.dcm"] * 8))
    assert warnings.filters == before and not logging.getLogger("pydicom").disabled


def test_bundled_files_keep_their_names_to_themselves() -> None:
    for path in sorted(BUNDLED.glob("*.dcm")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            name = str(pydicom.dcmread(path, force=True).get("PatientName", ""))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                text = repr(load_image(path, max_pixels=300_000).info)
        except ImageError as error:
            text = str(error)
        assert len(name) < 4 or name.strip("^ ") == "" or name not in text, path.name

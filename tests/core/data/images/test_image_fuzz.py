"""Damaged files of every reader end in a picture or in the project's own error, never in a library's."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmo_core.data.images.load import ImageError, load_image
from medmo_core.data.images.sizes import stored_size
from medmo_core.data.records.sample import ImageRef

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 4096, (9, 12), dtype=np.uint16)
Damaged = Callable[[bytes, random.Random], bytes]
MAX_PIXELS = 100_000  # what a damaged header may claim: these tests are about errors, not about memory


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pngs(folder: Path) -> list[bytes]:
    exif = Image.Exif()
    exif[274] = 6
    picture = Image.fromarray(COLOUR)
    return [saved(picture, "PNG", exif=exif), saved(Image.fromarray(DEEP), "PNG"), saved(picture.convert("P"), "PNG")]


def jpegs(folder: Path) -> list[bytes]:
    exif = Image.Exif()
    exif[274], exif[271] = 8, "maker"
    picture = Image.fromarray(COLOUR)
    return [saved(picture, "JPEG", exif=exif), saved(picture, "JPEG", progressive=True), saved(picture, "JPEG2000")]


def tiffs(folder: Path) -> list[bytes]:
    tifffile = pytest.importorskip("tifffile")
    made = [saved(Image.fromarray(COLOUR), "TIFF"), saved(Image.fromarray(COLOUR), "TIFF", compression="tiff_lzw")]
    for values, options in (
        (DEEP, {"photometric": "minisblack"}),
        (COLOUR.astype("u2") * 16, {"photometric": "rgb", "compression": "zlib"}),
        (COLOUR.astype("u2"), {"photometric": "rgb", "bigtiff": True, "byteorder": ">"}),
    ):
        tifffile.imwrite(folder / "seed.tif", values, **options)
        made.append((folder / "seed.tif").read_bytes())
    return made


def dicoms(folder: Path, write_dicom: Callable[..., Path]) -> list[bytes]:
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

    place = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 2]}
    palette = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", bytes(512)))
    }
    voi = {"WindowCenter": [40, 50], "WindowWidth": [400, 9], "RescaleSlope": -2, "RescaleIntercept": 1}
    high = {"BitsStored": 12, "HighBit": 15, "PixelPaddingValue": 3}
    return [
        write_dicom(folder / "seed.dcm", words, **tags).read_bytes()
        for words, tags in (
            (DEEP, {**place, **voi}),
            (DEEP.astype("i2"), {**high, "Modality": "CT"}),
            (COLOUR[..., 0], {**palette, "PhotometricInterpretation": "PALETTE COLOR"}),
            (DEEP, {**place, "syntax": ImplicitVRLittleEndian, "NumberOfFrames": 1}),
            (DEEP, {**voi, "syntax": DeflatedExplicitVRLittleEndian}),
        )
    ]


def niftis(folder: Path) -> list[bytes]:
    nibabel = pytest.importorskip("nibabel")
    made = []
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        image = kind(DEEP.astype(np.int16).reshape(3, 6, 6), np.eye(4))
        image.to_filename(folder / "seed.nii")
        made.append((folder / "seed.nii").read_bytes())
    return made


def gzipped(folder: Path) -> list[bytes]:
    import gzip

    return [gzip.compress(data, mtime=0) for data in niftis(folder)]


def mghs(folder: Path) -> list[bytes]:
    nibabel = pytest.importorskip("nibabel")
    nibabel.MGHImage(DEEP.astype(np.int16).reshape(3, 6, 6), np.eye(4)).to_filename(folder / "seed.mgh")
    return [(folder / "seed.mgh").read_bytes()]


SEEDS: dict[str, Callable[..., list[bytes]]] = {
    ".png": pngs,
    ".jpg": jpegs,
    ".tif": tiffs,
    ".dcm": dicoms,
    ".nii": niftis,
    ".nii.gz": gzipped,
    ".mgh": mghs,
}


def survive(suffix: str, seeds: list[bytes], folder: Path, num_cases: int, seed: int, damaged: Damaged) -> int:
    """Read damaged files and return how many still gave a picture."""
    rng = random.Random(seed)
    file, shown = folder / f"case{suffix}", 0
    for case in range(num_cases):
        data = damaged(rng.choice(seeds), rng)
        file.write_bytes(data)
        for name, read in (
            ("load", lambda: load_image(file, max_pixels=MAX_PIXELS)),
            ("size", lambda: stored_size(ImageRef(str(file)), None)),
        ):
            try:
                read()
                shown += name == "load"
            except ImageError as error:
                assert str(file) in str(error) and error.__cause__ is None
            except Exception as error:
                error.add_note(f"{name} of case {case}: {data[:600]!r}")
                raise
    return shown


@pytest.mark.parametrize("suffix", list(SEEDS))
def test_damaged_files_end_in_our_own_error(
    tmp_path: Path, write_dicom: Callable[..., Path], damaged: Damaged, suffix: str
) -> None:
    seeds = dicoms(tmp_path, write_dicom) if suffix == ".dcm" else SEEDS[suffix](tmp_path)
    shown = survive(suffix, seeds, tmp_path, 500, 1, damaged)
    assert 0 < shown < 500  # some damage shows, some does not


@pytest.mark.fuzz
@pytest.mark.parametrize("suffix", list(SEEDS))
@pytest.mark.parametrize("seed", range(2, 8))
def test_many_damaged_files(
    tmp_path: Path, write_dicom: Callable[..., Path], damaged: Damaged, suffix: str, seed: int
) -> None:
    seeds = dicoms(tmp_path, write_dicom) if suffix == ".dcm" else SEEDS[suffix](tmp_path)
    survive(suffix, seeds, tmp_path, 5000, seed, damaged)

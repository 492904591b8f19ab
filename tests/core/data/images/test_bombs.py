"""Small files that claim to be huge are refused, or read in the memory that one picture needs."""

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medmo_core.data.images import dicom
from medmo_core.data.images.load import load_image
from medmo_core.data.images.sizes import stored_size
from medmo_core.data.records.sample import ImageRef

MIB = 2**20
WriteDicom = Callable[..., Path]
Within = Callable[[int, Callable[[], object]], str]


def test_the_memory_limit_limits(within: Within) -> None:
    assert within(50, lambda: len(bytes(20 * MIB))) == str(20 * MIB)
    assert within(50, lambda: len(bytes(80 * MIB))).startswith("MemoryError")


def deflated_bomb(path: Path, write_dicom: WriteDicom, num_bytes: int) -> Path:
    """A deflated DICOM file that inflates to one huge private element."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    write_dicom(path, np.zeros((4, 4), np.uint8), syntax=DeflatedExplicitVRLittleEndian)
    start = 144 + int(read_file_meta_info(path).FileMetaInformationGroupLength)
    packer = zlib.compressobj(1, wbits=-15)
    body = packer.compress(struct.pack("<HH2sHI", 0x0009, 0x1000, b"OB", 0, num_bytes))
    body += b"".join(packer.compress(bytes(MIB)) for _ in range(num_bytes // MIB))
    path.write_bytes(path.read_bytes()[:start] + body + packer.flush())
    return path


def test_a_deflated_bomb_is_refused(
    within: Within, tmp_path: Path, write_dicom: WriteDicom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom, "MAX_INFLATED_BYTES", 32 * MIB)
    bomb = deflated_bomb(tmp_path / "bomb.dcm", write_dicom, 200 * MIB)
    assert bomb.stat().st_size < 2 * MIB
    for read in (lambda: load_image(bomb), lambda: stored_size(ImageRef(str(bomb)), None)):
        assert "bomb.dcm: its deflated data are over the limit of 32 MiB" in within(120, read)


def test_a_compressed_volume_is_read_slab_by_slab(within: Within, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    shape = (256, 256, 1200)  # 150 MiB of voxels in a file of 1 MiB
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header["magic"], header["vox_offset"], header["sform_code"] = b"n+1", 352, 1
    header.set_sform(np.eye(4), code=1)
    with gzip.open(tmp_path / "v.nii.gz", "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(150):
            file.write(bytes(MIB))
    reference = ImageRef("v.nii.gz", plane="coronal")
    assert within(20, lambda: stored_size(reference, tmp_path)) == "(256, 1200)"
    assert within(110, lambda: load_image(tmp_path / "v.nii.gz", plane="coronal").size) == "(256, 1200)"


def test_a_strip_that_unpacks_to_more_than_a_page_is_refused(within: Within, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((8, 8, 3), np.uint16), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as file:
        places = [file.pages[0].tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts")]
    data, bomb = bytearray(path.read_bytes()), zlib.compress(bytes(150 * MIB), 9)
    for place, value in zip(places, (len(data), len(bomb)), strict=True):
        data[place : place + 4] = struct.pack("<I", value)
    path.write_bytes(data + bomb)
    assert "a piece of 384 bytes of samples is stored in" in within(100, lambda: load_image(path))


def test_a_deep_picture_is_scaled_a_few_rows_at_a_time(within: Within, tmp_path: Path) -> None:
    """24 MB of samples; as float64 they would be 96 MB, and there were several copies."""
    rows = zlib.compress(bytes(2000 * (1 + 2000 * 6)), 1)
    header = struct.pack(">IIBBBBB", 2000, 2000, 16, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + rows, b"IEND"]
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    assert within(120, lambda: load_image(tmp_path / "a.png").size) == "(2000, 2000)"


def test_the_size_of_a_volume_is_asked_of_its_header_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nibabel = pytest.importorskip("nibabel")
    nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)).to_filename(tmp_path / "v.nii.gz")
    monkeypatch.setattr(nibabel.arrayproxy.ArrayProxy, "__getitem__", lambda *_: pytest.fail("read voxels"))
    assert stored_size(ImageRef("v.nii.gz", plane="sagittal"), tmp_path) == (5, 6)


def test_the_size_of_a_dicom_file_is_asked_of_its_header_alone(tmp_path: Path, write_dicom: WriteDicom) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((40, 50), np.uint16))
    path.write_bytes(path.read_bytes()[:-3000])  # most of the pixels are missing
    assert stored_size(ImageRef("a.dcm"), tmp_path) == (50, 40)

"""A writer of small DICOM files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WriteDicom = Callable[..., Path]


@pytest.fixture(scope="session")
def write_dicom() -> WriteDicom:
    """Hand out a function (path, words, **tags) that writes a file; tags replace what the words' type suggests."""
    pytest.importorskip("pydicom")
    return _write


def _write(path: Path, words: np.ndarray, *, syntax: str | None = None, **tags: Any) -> Path:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds = Dataset()
    ds.file_meta, ds.preamble = meta, b"\0" * 128
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = SecondaryCaptureImageStorage, "1.2.3", "1.2.4"
    ds.Modality, ds.SamplesPerPixel, ds.PhotometricInterpretation = "OT", 1, "MONOCHROME2"
    ds.Rows, ds.Columns = words.shape[:2]
    ds.BitsAllocated = ds.BitsStored = words.dtype.itemsize * 8
    ds.PixelRepresentation = int(words.dtype.kind == "i")
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.HighBit = tags.get("HighBit", ds.BitsStored - 1)
    order = "<" if meta.TransferSyntaxUID.is_little_endian else ">"
    ds.PixelData = words.astype(words.dtype.newbyteorder(order)).tobytes() + b"\0" * (words.nbytes % 2)
    ds["PixelData"].VR = "OB" if words.dtype.itemsize == 1 else "OW"
    ds.save_as(path, enforce_file_format=True)
    return path

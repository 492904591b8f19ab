"""A writer of small DICOM files, damage for files of any kind, a limit of memory, a tokenizer of single digits."""

import base64
import multiprocessing
import random
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmo_core.data.text.tokenizer import Tokenizer

WriteDicom = Callable[..., Path]
MIB = 2**20


@pytest.fixture(scope="session")
def write_dicom() -> WriteDicom:
    """Hand out a function (path, words, **tags) that writes a file; tags replace what the words' type suggests."""
    pytest.importorskip("pydicom")
    return _write


@pytest.fixture(scope="session")
def within() -> Callable[[int, Callable[[], object]], str]:
    """Hand out a function (limit_mib, function) that calls in a fork which may take only so much more memory."""
    return _within


@pytest.fixture(scope="session")
def damaged() -> Callable[[bytes, random.Random], bytes]:
    """Hand out a function (bytes, rng) that returns the bytes with a few changed, cut, repeated or dropped."""
    return _damaged


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Hand out a tokenizer whose tokens are single bytes: numbers are written digit by digit, as Qwen's are."""
    path = tmp_path_factory.mktemp("tokenizer") / "bytes.tiktoken"
    path.write_text("".join(f"{base64.b64encode(bytes([value])).decode()} {value}\n" for value in range(256)))
    return Tokenizer.from_tiktoken(path)


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


def _within(limit_mib: int, function: Callable[[], object]) -> str:
    """Call a function in a fork that may take this much more memory; returns what it returned or raised, as text."""

    def work(to_parent: Connection) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + limit_mib * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            to_parent.send(str(function()))
        except Exception as error:
            to_parent.send(f"{type(error).__name__}: {error}")

    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=work, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(60) else "no answer in a minute"
    except EOFError:
        return "died"
    finally:
        process.kill()
        process.join()


def _damaged(data: bytes, rng: random.Random) -> bytes:
    """Change a few bytes, mostly near the start where headers are, or cut, repeat or drop a piece."""
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        reach = len(spoilt) if rng.random() < 0.5 else min(len(spoilt), 400)
        at = rng.randrange(max(1, reach))
        piece = slice(at, at + rng.choice((1, 2, 4, 30)))
        kind = rng.randrange(6)
        if kind == 0:
            del spoilt[at:]
        elif kind == 1:
            del spoilt[piece]
        elif kind == 2:
            spoilt[at:at] = spoilt[piece]
        elif kind == 3:
            spoilt[piece] = rng.choice((b"\0", b"\xff", b"\x7f")) * len(spoilt[piece])
        elif kind == 4:
            spoilt[piece] = rng.randbytes(len(spoilt[piece]))
        elif at < len(spoilt):
            spoilt[at] ^= 1 << rng.randrange(8)
    return bytes(spoilt)

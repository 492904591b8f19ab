"""The size of a picture without decoding it, where the kind of file allows."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ..records.sample import ImageRef
from ..records.store import Root
from . import dicom, volume
from .dicom import is_dicom
from .dicom_series import is_series, read_series_size
from .load import check_file, load_whole, safe_path
from .loaded import own_errors
from .picture import PILLOW_FORMATS
from .tiff import ORIENTATION
from .volume import is_volume

TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
PNG_SIGNATURE_BYTES = 8
PNG_TELLING = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks that can state an orientation


def shown_size(reference: ImageRef, root: Root) -> tuple[int, int]:
    """Return (width, height) in px of a picture as a sample shows it, after its crop: what the record states, else the
    crop's size, else what the file's header says.

    Raises:
        ImageError: as for `stored_size`.
    """
    if reference.size is not None:
        return reference.size
    if reference.crop is not None:
        x0, y0, x1, y1 = reference.crop
        return x1 - x0, y1 - y0
    return stored_size(reference, root)


def stored_size(reference: ImageRef, root: Root) -> tuple[int, int]:
    """Return (width, height) in px of a stored picture, before its crop.

    Args:
        reference: the file and what to take of it.
        root: data root of its path.

    Raises:
        ImageError: no such file, a path that leaves the root, or a file that is no picture.
    """
    if root is not None and not isinstance(root, str | Path):
        with own_errors(reference.path), root.open(reference.path) as stream:
            size = _picture_size(stream, reference.frame)
        return size or load_whole(reference, root).size
    file = safe_path(reference.path, root)
    with own_errors(file, "the file"):
        check_file(file, root)
        if is_volume(file):
            return volume.read_size(file, reference.plane)
        if is_series(file):
            return read_series_size(file, reference.plane)
        if is_dicom(file):
            return dicom.read_size(file)
        with file.open("rb") as stream:
            size = _picture_size(stream, reference.frame)
    return size or load_whole(reference, root).size


def _picture_size(stream: BinaryIO, frame: int | None) -> tuple[int, int] | None:
    """Return the size that a picture's header states; None where the loader must say: it knows more kinds, says best
    what is wrong, and sees an orientation that stands after the pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that the loader checks when it decodes
            with Image.open(stream, formats=PILLOW_FORMATS) as image:
                if frame:
                    image.seek(frame)
                if image.format == "PNG" and _png_tells_late(stream):
                    return None
                if image.format == "TIFF":  # Pillow turns these itself, their size too
                    return image.size
                # Not the PNG class's own getexif, which decodes the pixels to reach what may follow them.
                swaps = Image.Image.getexif(image).get(ORIENTATION) in TRANSPOSED
                return (image.height, image.width) if swaps else image.size
    except Exception:  # Pillow has dozens of ways to say "damaged"; the loader says which file and what to do
        return None


def _png_tells_late(stream: BinaryIO) -> bool:
    """Whether a PNG file has text or EXIF chunks after its first pixels."""
    stream.seek(PNG_SIGNATURE_BYTES)
    pixels_began = False
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            break
        if pixels_began and kind in PNG_TELLING:
            return True
        pixels_began |= kind == b"IDAT"
        stream.seek(length + 4, 1)  # the chunk and its checksum
    return False

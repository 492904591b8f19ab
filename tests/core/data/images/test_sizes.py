"""Sizes from headers equal the decoder's, for every kind of picture, and nothing is decoded to learn them."""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image, ImageFile

from medmo_core.data.images.load import ImageError, load_image
from medmo_core.data.images.sizes import shown_size, stored_size
from medmo_core.data.records.sample import ImageRef

TURNED = 6  # EXIF: shown turned by a quarter


@dataclass(frozen=True)
class Shelf:
    """A store of one picture."""

    data: bytes

    def open(self, path: str) -> BinaryIO:
        if path != "a":
            raise ImageError(f"{path}: no such picture on the shelf")
        return io.BytesIO(self.data)


def picture(kind: str, *, orientation: int | None = None, size: tuple[int, int] = (48, 32)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    Image.fromarray(pixels).save(out, kind, **({} if orientation is None else {"exif": exif}))
    return out.getvalue()


def with_late_exif(data: bytes) -> bytes:
    """The same PNG with its EXIF chunk moved behind the pixels."""
    chunks, position = [], 8
    while position < len(data):
        length = struct.unpack(">I", data[position : position + 4])[0]
        chunks.append(data[position : position + 12 + length])
        position += 12 + length
    late = [chunk for chunk in chunks if chunk[4:8] == b"eXIf"]
    assert late
    others = [chunk for chunk in chunks if chunk[4:8] != b"eXIf"]
    return data[:8] + b"".join([*others[:-1], *late, others[-1]])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
@pytest.mark.parametrize("orientation", [None, TURNED])
def test_a_header_says_what_the_decoder_gives(
    kind: str, orientation: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture(kind, orientation=orientation)
    (tmp_path / "a").write_bytes(data)
    from_file, from_store = (load_image("a", root=root) for root in (tmp_path, Shelf(data)))
    assert np.array_equal(from_file.pixels, from_store.pixels)
    assert from_file.info["kind"] == from_store.info["kind"] == kind.lower()
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded to learn its size"))
    assert stored_size(ImageRef("a"), tmp_path) == stored_size(ImageRef("a"), Shelf(data)) == from_file.size
    turned = kind in ("PNG", "JPEG", "WEBP", "TIFF") and orientation == TURNED
    assert from_file.size == ((32, 48) if turned else (48, 32))


def test_an_orientation_behind_the_pixels_is_seen() -> None:
    data = with_late_exif(picture("PNG", orientation=TURNED))
    assert stored_size(ImageRef("a"), Shelf(data)) == load_image("a", root=Shelf(data)).size == (32, 48)


def test_a_truncated_png_still_has_a_size() -> None:
    data = picture("PNG", size=(640, 480))
    assert stored_size(ImageRef("a"), Shelf(data[: len(data) // 2])) == (640, 480)


def test_the_record_goes_before_the_crop_and_the_crop_before_the_file() -> None:
    shelf = Shelf(picture("PNG"))
    assert shown_size(ImageRef("a"), shelf) == (48, 32)
    assert shown_size(ImageRef("a", crop=(4, 0, 24, 16)), shelf) == (20, 16)
    assert shown_size(ImageRef("nowhere", 7, 8), shelf) == (7, 8)


@pytest.mark.parametrize(
    ("data", "reference", "message"),
    [
        (b"no picture", ImageRef("a"), "a: not a picture of a supported kind"),
        (b"", ImageRef("b"), "b: no such picture on the shelf"),
        (b"", ImageRef("a", slice_index=3), "a: volumes and DICOM files are read from folders only"),
        (b"", ImageRef("a.dcm"), r"a\.dcm: "),
        (picture("PNG")[:60], ImageRef("a"), None),
    ],
)
def test_what_a_store_cannot_serve_is_named(data: bytes, reference: ImageRef, message: str | None) -> None:
    if message is None:  # a header is enough for a size; the pixels are judged when they are read
        assert stored_size(reference, Shelf(data)) == (48, 32)
        message = "a: the picture is truncated or damaged"
    else:
        with pytest.raises(ImageError, match=message):
            stored_size(reference, Shelf(data))
    with pytest.raises(ImageError, match=message):
        load_image(reference.path, root=Shelf(data), slice_index=reference.slice_index)


def test_an_image_bomb_in_a_store_is_refused_unread() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="image bomb"):
        load_image("a", root=Shelf(bomb))

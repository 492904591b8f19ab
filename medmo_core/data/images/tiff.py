"""TIFF kinds that Pillow cannot read at their full depth, such as 16-bit colour, by tifffile."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...optional import import_optional
from .loaded import COPY_AGAIN, ImageError

TIFF_SUFFIXES = (".tif", ".tiff")
MAX_PAGES = 10_000
MAX_GROWTH, PACKED_HEAD = 1.25, 4096  # by which packing may make samples longer, and bytes beside them
BITS_PER_SAMPLE, SAMPLE_FORMAT = 258, 339
PHOTOMETRIC, ORIENTATION, MAX_SAMPLE_VALUE = 262, 274, 281
UNSIGNED, SIGNED = 1, 2  # sample formats
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE = 0, 1, 2, 3  # photometric interpretations
PREMULTIPLIED, TRANSPARENCY = 1, 2  # what an extra sample may be
PAGE_TABLE = {
    b"II*\0": "<HI12", b"MM\0*": ">HI12",  # classic: type of the count, of offsets, and bytes of an entry
    b"II\0*": "<HI12", b"MM*\0": ">HI12",  # some writers swap the magic number
    b"II+\0": "<QQ20", b"MM\0+": ">QQ20",  # BigTIFF
}  # fmt: skip


class Cover(NamedTuple):
    """Samples of an alpha channel.

    Shapes: alpha (H, W).

    Attributes:
        alpha: samples at their full depth, the largest for what hides the paper.
        premultiplied: whether the colours are multiplied by it already.
    """

    alpha: NDArray[Any]
    premultiplied: bool


@dataclass(frozen=True)
class DeepPage:
    """Samples of a page, upright.

    Shapes: values (H, W), or (H, W, 3) where `colour`.

    Attributes:
        values: samples at their full depth.
        largest: value of a full sample, where it is known.
        colour: whether they are red, green and blue.
        white_is_zero: whether small values are bright.
        num_frames: pages of the file.
        cover: how much of the paper a sample hides, where the page says; None: all of it.
    """

    values: NDArray[Any]
    largest: int | None
    colour: bool
    white_is_zero: bool
    num_frames: int
    cover: Cover | None = None


def count_pages(stream: IO[bytes], path: Path) -> int:
    """Count the pages of a TIFF file by walking from one table of contents to the next; none is read.

    Args:
        stream: the file; where it stands is kept.
        path: name of the file, for messages.

    Raises:
        ImageError: more pages than any picture has, or pages in a circle.
    """
    position = stream.tell()
    stream.seek(0)
    magic = stream.read(4)
    layout = PAGE_TABLE.get(magic)
    if layout is None:
        raise ImageError(f"{path}: the picture is truncated or damaged; {COPY_AGAIN}")
    order, count_type, offset_type, entry = layout[0], layout[1], layout[2], int(layout[3:])
    if count_type == "Q":
        stream.seek(8)
    pages, seen = 0, set()
    offset = _number(stream, order + offset_type)
    while offset:
        pages += 1
        if pages > MAX_PAGES or offset in seen:
            raise ImageError(
                f"{path}: over the limit of {MAX_PAGES} pages, or pages in a circle: split the file, or leave it out"
            )
        seen.add(offset)
        stream.seek(offset)
        entries = _number(stream, order + count_type)
        if entries is None:
            break
        stream.seek(offset + struct.calcsize(order + count_type) + entries * entry)
        offset = _number(stream, order + offset_type)
    stream.seek(position)
    return max(1, pages)


def _number(stream: IO[bytes], form: str) -> int | None:
    """Read one number; None at the end of the file."""
    data = stream.read(struct.calcsize(form))
    return struct.unpack(form, data)[0] if len(data) == struct.calcsize(form) else None


def needs_tifffile(image: Image.Image) -> bool:
    """Say whether Pillow would open a page with wrong values: it keeps 8 bits of a colour, and drops signs."""
    tags: Any = getattr(image, "tag_v2", {})
    bits, forms = tags.get(BITS_PER_SAMPLE, (1,)), tags.get(SAMPLE_FORMAT, (UNSIGNED,))
    if len(bits) > 1:
        return max(bits) > 8 or any(form != UNSIGNED for form in forms)
    return (bits[0] <= 8 and forms[0] == SIGNED) or (bits[0] > 16 and forms[0] == UNSIGNED)


def read_deep_tiff(path: Path, source: Path | BinaryIO, *, frame: int | None, max_pixels: int) -> DeepPage:
    """Read a page of a TIFF file at its full depth; transparent parts become white, as on paper.

    Args:
        path: name of the file, for messages.
        source: file to read.
        frame: page, from 0; None: the first.
        max_pixels: refuse larger pages before decoding them.

    Raises:
        ImageError: damaged, over the limit, no such page, or not a picture in grey or RGB.
        ModuleNotFoundError: tifffile is not installed; names the extra that brings it.
    """
    tifffile = import_optional("tifffile", "medical", f"{path}: this kind of TIFF (deep colour)")
    if not isinstance(source, Path):
        source.seek(0)
    try:
        with tifffile.TiffFile(source) as file:
            num_frames = count_pages(file.filehandle, path)
            if not 0 <= (frame or 0) < num_frames:
                raise ImageError(f"{path}: frame is {frame}, but there are {num_frames} frames (0 to {num_frames - 1})")
            page: Any = file.pages[frame or 0]
            width, height = int(page.imagewidth), int(page.imagelength)
            if width * height > max_pixels:
                raise ImageError(
                    f"{path}: {width}x{height} px is over the limit of {max_pixels} pixels; raise max_pixels"
                )
            _check_kind(path, page)
            _check_packed(path, page)
            values = page.asarray()
            planes, num_samples = int(page.planarconfig), int(page.samplesperpixel)
            if planes == 2 and num_samples > 1:
                values = np.moveaxis(values.reshape(num_samples, height, width), 0, -1)
            values = values.reshape(height, width, num_samples)
            largest = _declared(page)
            if int(page.photometric) == PALETTE:
                values, largest = np.moveaxis(page.colormap, 0, -1)[values[..., 0]], 65535
            return _page(values, page, largest, num_frames)
    except (ImageError, ImportError):
        raise
    except Exception as error:
        kind = type(error).__name__
        hint = "; its compression needs: pip install imagecodecs" if "imagecodecs" in str(error) else f"; {COPY_AGAIN}"
        raise ImageError(f"{path}: the TIFF is damaged or of an unsupported kind ({kind}){hint}") from None


def _check_kind(path: Path, page: Any) -> None:
    """Refuse what is not a picture in grey, RGB or a palette of these."""
    own = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1}.get(int(page.photometric))
    num_samples = int(page.samplesperpixel)
    if own is None or not own <= num_samples <= own + 1:
        raise ImageError(
            f"{path}: a TIFF page with {num_samples} samples a pixel of kind {page.photometric!s} is not a picture "
            "that can be shown; save it as grey or RGB"
        )


def _check_packed(path: Path, page: Any) -> None:
    """Refuse a page of which a piece has more packed bytes than its samples could need: what else would it unpack to?

    Raises:
        ImageError: there is such a piece.
    """
    unpacked = math.prod(page.chunks) * page.dtype.itemsize
    packed = max(page.databytecounts, default=0)
    if packed > unpacked * MAX_GROWTH + PACKED_HEAD:
        raise ImageError(
            f"{path}: a piece of {unpacked} bytes of samples is stored in {packed} bytes: a bomb, or damaged; "
            f"{COPY_AGAIN}"
        )


def _declared(page: Any) -> int | None:
    """Return the largest value that the file declares for a sample."""
    tag = page.tags.get(MAX_SAMPLE_VALUE)
    value = tag.value if tag is not None else None
    value = max(value) if isinstance(value, tuple) and value else value
    return int(value) if isinstance(value, int | float) else None


def _page(values: NDArray[Any], page: Any, largest: int | None, num_frames: int) -> DeepPage:
    colour = values.shape[2] >= 3
    white_is_zero = int(page.photometric) == WHITE_IS_ZERO
    own = 3 if colour else 1
    extra = [int(sample) for sample in page.extrasamples]
    tag = page.tags.get(ORIENTATION)
    values = upright(values, int(tag.value) if tag is not None else 1)
    cover = None
    if values.shape[2] > own and extra and extra[0] in (PREMULTIPLIED, TRANSPARENCY):
        cover = Cover(values[..., own], extra[0] == PREMULTIPLIED)
    return DeepPage(values[..., :own] if colour else values[..., 0], largest, colour, white_is_zero, num_frames, cover)


def upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn a page as its Orientation tag asks: 2 to 4 mirror or turn it, 5 to 8 swap its sides first."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values

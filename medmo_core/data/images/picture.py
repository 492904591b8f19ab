"""Pictures that Pillow reads, PNG, JPEG, TIFF and their like, to uint8 RGB; deep ones by their depth or a window."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from .intensity import apply_range, apply_window, declared_depth, percentile_range, read_window, to_grey
from .loaded import MAX_PIXELS, ImageError, LoadedImage, own_errors, silent_libraries
from .tiff import (
    MAX_SAMPLE_VALUE,
    ORIENTATION,
    PHOTOMETRIC,
    TIFF_SUFFIXES,
    Cover,
    count_pages,
    needs_tifffile,
    read_deep_tiff,
    upright,
)

SUPPORTED = "PNG, JPEG, JPEG 2000, TIFF, BMP, GIF, WebP, PPM, DICOM, NIfTI (.nii, .nii.gz), MGH"
PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")  # none that runs a program
ROWS_AT_A_TIME = 64  # of a deep picture, which takes many times its bytes while it is scaled
DEEP_PNG = {"RGB;16B": ("RGB;16B", "RGB;16L"), "RGBA;16B": ("RGBA;16B", "RGBA;16L"), "LA;16B": ("RGBA",)}
"""Layouts of PNG samples of which Pillow keeps the upper byte -> layouts to read instead, which hold all bytes."""


def read_picture(
    path: Path, source: Path | BinaryIO, *, frame: int | None, window: object, max_pixels: int
) -> LoadedImage:
    """Read a picture.

    Args:
        path: name of the picture, for messages.
        source: file to read.
        frame: frame of a multi-frame file, from 0; None: the first.
        window: grey levels of a deep picture, see `load_image`.
        max_pixels: refuse larger pictures before decoding them.

    Raises:
        ImageError: not a picture, damaged, over the limit, or no such frame.
    """
    # Silent about odd EXIF, and about sizes that are checked just below.
    with own_errors(path), silent_libraries():
        try:
            with Image.open(source, formats=PILLOW_FORMATS) as image:
                num_frames = _num_frames(image, path)
                _seek(image, path, frame, num_frames)
                if _is_deep_png(image):
                    return _read_deep_png(image, path, source, num_frames, window, max_pixels)
                if not (image.format == "TIFF" and needs_tifffile(image)):
                    return picture_pixels(image, path, num_frames, window, max_pixels)
        except Image.DecompressionBombError:
            raise ImageError(
                f"{path}: more pixels than Pillow's safety limit: an image bomb? If it is genuine, shrink or tile it "
                "first"
            ) from None
        except UnidentifiedImageError:
            if path.suffix.lower() not in TIFF_SUFFIXES:
                raise ImageError(
                    f"{path}: not a picture of a supported kind ({SUPPORTED}), or damaged: save it as one of these"
                ) from None
        deep = read_deep_tiff(path, source, frame=frame, max_pixels=max_pixels)
        grey = _deep_grey(
            deep.values, path, window, deep.largest, colour=deep.colour, inverted=deep.white_is_zero, cover=deep.cover
        )
        info = {"kind": "tiff", "num_frames": deep.num_frames, "windows": [], "spacing_mm": None}
        return LoadedImage(grey, None, info)


def from_pillow(image: Image.Image, *, window: Any = None, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Read a picture that Pillow has opened as its file is read; the caller's image stays as it is.

    Args:
        image: the picture; of several frames, the one it stands at.
        window: grey levels of a deep picture, as for `load_image`.
        max_pixels: largest number of pixels; larger pictures are refused.

    Raises:
        ImageError: the picture is too large, damaged, closed, or takes no window.
    """
    name = Path("Pillow image")
    with own_errors(name), silent_libraries():
        try:
            num_frames = int(getattr(image, "n_frames", 1))
            if _is_deep_png(image) or (isinstance(image, TiffImagePlugin.TiffImageFile) and needs_tifffile(image)):
                raise ImageError(f"{name}: Pillow reads its values at 8 bits and drops the rest; give the file itself")
            return picture_pixels(image, name, num_frames, window, max_pixels, in_place=False)
        except (ValueError, AttributeError) as error:
            if isinstance(error, ImageError) or not _is_closed(image):
                raise
            raise ImageError(f"{name}: it is closed; call its load() before closing it, or give the file") from None


def _is_closed(image: Image.Image) -> bool:
    try:
        image.getim()
    except (ValueError, AttributeError):  # Pillow says so in several ways
        return True
    return False


def _num_frames(image: Image.Image, path: Path) -> int:
    """Count the frames of a file; Pillow would read every page of a TIFF to do so."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        assert image.fp is not None
        return count_pages(image.fp, path)
    return int(getattr(image, "n_frames", 1))


def _seek(image: Image.Image, path: Path, frame: int | None, num_frames: int) -> None:
    if not 0 <= (frame or 0) < num_frames:
        raise ImageError(f"{path}: frame is {frame}, but there are {num_frames} frames (0 to {num_frames - 1})")
    if frame:
        image.seek(frame)


def picture_pixels(
    image: Image.Image, path: Path, num_frames: int, window: object, max_pixels: int, *, in_place: bool = True
) -> LoadedImage:
    """Return the pixels of an opened picture; `in_place` turns the picture itself upright, which saves a copy."""
    _check_size(image, path, max_pixels)
    info = _info(image, num_frames)
    deep = image.mode.startswith("I") or image.mode == "F"
    # Pillow has spread the grey levels of a PGM over 16 bits already.
    largest = 65535 if image.format == "PPM" else _tiff_number(image, MAX_SAMPLE_VALUE)
    white_is_zero = _tiff_number(image, PHOTOMETRIC) == 0
    image.load()
    if in_place:
        ImageOps.exif_transpose(image, in_place=True)
    else:
        image = ImageOps.exif_transpose(image)
    if deep:
        grey = _deep_grey(np.asarray(image), path, window, largest, colour=False, inverted=white_is_zero)
        return LoadedImage(grey, None, info)
    if window is not None:
        raise ImageError(
            f"{path}: an 8-bit picture holds grey levels, not measured values: it takes no window; leave it out"
        )
    return LoadedImage(np.asarray(_rgb(image)), None, info)


def _check_size(image: Image.Image, path: Path, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width}x{height} px is over the limit of {max_pixels} pixels: an image bomb? If it is genuine, "
            "raise max_pixels, or shrink or tile it first"
        )


def _info(image: Image.Image, num_frames: int) -> dict[str, Any]:
    kind = (image.format or "picture").lower()
    return {"kind": kind, "num_frames": num_frames, "windows": [], "spacing_mm": None}


def _is_deep_png(image: Image.Image) -> TypeGuard[ImageFile.ImageFile]:
    """Say whether a picture is a PNG file, not decoded yet, of whose samples Pillow would drop the lower byte."""
    is_png = isinstance(image, PngImagePlugin.PngImageFile)
    return is_png and any(tile.args in DEEP_PNG for tile in image.tile)


def _read_deep_png(
    image: ImageFile.ImageFile, path: Path, source: Path | BinaryIO, num_frames: int, window: object, max_pixels: int
) -> LoadedImage:
    """Read a PNG file with 16 bits a colour; the arguments are those of `picture_pixels`, and the file."""
    _check_size(image, path, max_pixels)
    if num_frames > 1:
        raise ImageError(f"{path}: an animation of 16 bits a colour cannot be read; save its frames one by one")
    layout = next(tile.args for tile in image.tile if tile.args in DEEP_PNG)
    halves = [_read_as(source, other) for other in DEEP_PNG[layout]]
    upper, lower = halves if len(halves) == 2 else (halves[0][..., ::2], halves[0][..., 1::2])
    values = upper.astype(np.uint16)
    values <<= 8
    values |= lower
    own = 1 if layout == "LA;16B" else 3
    cover = Cover(values[..., own], premultiplied=False) if values.shape[2] > own else None
    values = values[..., :3] if own == 3 else values[..., 0]
    grey = _deep_grey(values, path, window, None, colour=own == 3, cover=cover)
    clear = image.info.get("transparency")
    if isinstance(clear, tuple):
        grey[(values == clear).all(-1)] = 255
    image.load()  # what the file says of its orientation may stand after the pixels
    return LoadedImage(upright(grey, image.getexif().get(ORIENTATION, 1)), None, _info(image, num_frames))


def _read_as(source: Path | BinaryIO, layout: str) -> NDArray[np.uint8]:
    """Read a PNG file as if its samples had another layout of as many bytes."""
    if not isinstance(source, Path):
        source.seek(0)
    with Image.open(source, formats=("PNG",)) as image:
        image.tile = [tile._replace(args=layout) for tile in image.tile]
        return np.asarray(image)


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; transparent parts become white, as on paper."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _tiff_number(image: Image.Image, tag: int) -> int | None:
    """The first number under a TIFF tag; None for other files and absent tags."""
    tags: Any = getattr(image, "tag_v2", None)
    value = tags.get(tag) if tags is not None else None
    value = value[0] if isinstance(value, tuple) and value else value
    return int(value) if isinstance(value, int | float) else None


def _deep_grey(
    values: NDArray[Any],
    path: Path,
    window: object,
    declared: int | None,
    *,
    colour: bool,
    inverted: bool = False,
    cover: Cover | None = None,
) -> NDArray[np.uint8]:
    """Grey levels of deep pixels: by window, declared range or usual depth; signed and real ones by percentiles.

    Transparent parts become white, as on paper.
    """
    windows = read_window(window)
    shown: list[Callable[[NDArray[Any]], NDArray[np.float64]]]
    if windows is not None:
        if colour:
            raise ImageError(f"{path}: a colour picture holds no measured values: it takes no window; leave it out")
        if any(isinstance(w, int | str) for w in windows):
            raise ImageError(
                f"{path}: this file is not in Hounsfield units and states no windows; give (center, width)"
            )
        shown = [partial(apply_window, window=w) for w in windows if isinstance(w, tuple)]
    elif np.issubdtype(values.dtype, np.integer) and values.size and values.min() >= 0 and values.max() < 2**16:
        largest = int(values.max())
        known = declared if declared is not None and declared >= largest else declared_depth(largest)
        shown = [partial(apply_range, low=0.0, high=float(known))]
    else:
        low, high = percentile_range(values)
        shown = [partial(apply_range, low=low, high=high)]
    grey = np.empty((*values.shape[:2], 3), np.uint8)
    full = 1.0
    if cover is not None and np.issubdtype(cover.alpha.dtype, np.integer):
        full = float(declared_depth(int(cover.alpha.max()), 8 * cover.alpha.dtype.itemsize))
    for start in range(0, len(grey), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        units = [show(values[rows]) for show in shown]
        if cover is not None:
            alpha = cover.alpha[rows] / full
            units = [_on_paper(unit, alpha, cover.premultiplied, inverted) for unit in units]
        channels = [255 - to_grey(unit) if inverted else to_grey(unit) for unit in units]
        grey[rows] = channels[0] if colour else np.stack(channels * (3 // len(channels)), axis=-1)
    return grey


def _on_paper(
    unit: NDArray[np.float64], alpha: NDArray[np.float64], premultiplied: bool, inverted: bool
) -> NDArray[np.float64]:
    """Lay values of 0..1 over white, which is 0 where they are inverted."""
    alpha = alpha if unit.ndim == 2 else alpha[..., None]
    ink = unit if premultiplied else unit * alpha
    return ink if inverted else ink + (1.0 - alpha)

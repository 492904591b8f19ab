"""Any supported picture file to uint8 RGB, with its place in the patient where the file knows it."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ...optional import import_optional
from ..records.sample import ImageRef
from ..records.store import ImageStore, Root
from .dicom import SUFFIXES as DICOM_SUFFIXES
from .dicom import is_dicom, read_dicom
from .intensity import apply_range, apply_window, declared_depth, percentile_range, read_window, to_grey
from .loaded import SAFE_FIELDS, ImageError, LoadedImage, silent_libraries
from .volume import is_volume, read_slice

__all__ = [
    "MAX_PIXELS",
    "SAFE_FIELDS",
    "ImageError",
    "LoadedImage",
    "check_image",
    "crop_pixels",
    "from_pillow",
    "load_image",
    "load_whole",
    "safe_path",
]

MAX_PIXELS = 100_000_000
SUPPORTED = "PNG, JPEG, JPEG 2000, TIFF, BMP, GIF, WebP, PPM, DICOM, NIfTI (.nii, .nii.gz), MGH"
PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")  # none that runs a program
TIFF_MAX_SAMPLE_VALUE, TIFF_PHOTOMETRIC = 281, 262


def safe_path(path: str | Path, root: str | Path | None) -> Path:
    """Return the file a path names, and refuse paths that leave the data root.

    Args:
        path: relative to `root`; any path when `root` is None.
        root: folder that holds the data.

    Raises:
        ImageError: an absolute path, a way up (`..`) or a link that ends outside the root.
    """
    if root is None:
        return Path(path)
    text = str(path)
    foreign = PureWindowsPath(text)  # reads both kinds of slash
    if "\0" in text or Path(text).is_absolute() or foreign.anchor or ".." in foreign.parts:
        raise ImageError(f"{text!r} leaves the data root {root}: write paths relative to it, without '..'")
    target = Path(root) / text
    try:
        resolved = target.resolve()
    except (OSError, RuntimeError):
        raise ImageError(f"{text!r} cannot be followed under the data root {root}: a loop of links?") from None
    if not resolved.is_relative_to(Path(root).resolve()):
        raise ImageError(f"{text!r} leaves the data root {root} through a link: copy the file into it")
    return target


def load_image(
    path: str | Path,
    *,
    root: Root = None,
    frame: int | None = None,
    slice_index: int | None = None,
    plane: str = "axial",
    window: Any = None,
    crop: tuple[int, int, int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> LoadedImage:
    """Read a picture, a DICOM frame or a slice of a volume.

    Args:
        path: the file, relative to `root` when there is one.
        root: the data root; a path that leaves it is refused. A store holds pictures only, no DICOM files and volumes.
        frame: frame of a multi-frame DICOM, TIFF or GIF file or a 4-D volume, from 0; None: the first.
        slice_index: slice of a volume, counted from the feet (axial), the back (coronal) or the patient's left
            (sagittal); None: the middle.
        plane: plane of a volume: axial, coronal or sagittal.
        window: None (what the file says, see `read_dicom` and `read_slice`), the name of a preset
            (`HOUNSFIELD_WINDOWS`), (center, width), the index of a DICOM file's own windows, or three of these for the
            red, green and blue channel.
        crop: (x0, y0, x1, y1) in pixels; what lies beyond the picture is black.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        ImageError: the file cannot be read as asked, saying why and what to do.
    """
    if root is not None and not isinstance(root, str | Path):
        name = str(path)
        loaded = _read_stored(root, name, frame=frame, slice_index=slice_index, window=window, max_pixels=max_pixels)
    else:
        loaded = _read_file(
            safe_path(path, root),
            root,
            frame=frame,
            slice_index=slice_index,
            plane=plane,
            window=window,
            max_pixels=max_pixels,
        )
    if crop is None:
        return loaded
    geometry = loaded.geometry.crop(*crop) if loaded.geometry else None
    return LoadedImage(crop_pixels(loaded.pixels, crop, max_pixels=max_pixels), geometry, loaded.info)


def load_whole(reference: ImageRef, root: Root) -> LoadedImage:
    """Read the picture that a reference means, without its crop.

    Args:
        reference: file, and what to take of it.
        root: data root of its path.

    Raises:
        ImageError: as for `load_image`.
    """
    return load_image(
        reference.path,
        root=root,
        frame=reference.frame,
        slice_index=reference.slice_index,
        plane=reference.plane,
        window=reference.window,
    )


def check_image(reference: ImageRef, root: Root) -> tuple[int, int]:
    """Decode the picture that a reference means in full, as training would, and its crop too.

    Args:
        reference: file, and what to take of it.
        root: data root of its path.

    Returns:
        Width and height in px of the stored picture, before its crop.

    Raises:
        ImageError: the picture is missing, cut, damaged or not readable as asked, or its crop misses it.
    """
    loaded = load_whole(reference, root)
    if reference.crop is not None:
        crop_pixels(loaded.pixels, reference.crop)
    return loaded.size


def from_pillow(image: Image.Image, *, window: Any = None, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Read a picture that Pillow has opened as `load_image` reads its file; the caller's image stays as it is.

    Args:
        image: the picture; of several frames, the one it stands at.
        window: grey levels of a deep picture, as for `load_image`.
        max_pixels: largest number of pixels; larger pictures are refused.

    Raises:
        ImageError: the picture is too large, damaged, or takes no window.
    """
    name = Path("Pillow image")
    _check_window(name, window)
    try:
        with silent_libraries():
            return _picture_pixels(image, name, None, window, max_pixels, in_place=False)
    except (OSError, SyntaxError, EOFError) as error:
        raise ImageError(f"{name}: the picture is truncated or damaged ({type(error).__name__})") from None


def _read_file(
    file: Path,
    root: str | Path | None,
    *,
    frame: int | None,
    slice_index: int | None,
    plane: str,
    window: Any,
    max_pixels: int,
) -> LoadedImage:
    if not file.is_file():
        raise ImageError(f"{file}: no such file" + (f" under the data root {root}; check the path" if root else ""))
    _check_window(file, window)
    try:
        if is_volume(file):
            return read_slice(
                file, slice_index=slice_index, plane=plane, frame=frame, window=window, max_pixels=max_pixels
            )
        if slice_index is not None:
            raise ImageError(
                f"{file}: slice_index is for volumes; choose a frame of a multi-frame file with frame={slice_index}"
            )
        if is_dicom(file):
            return read_dicom(file, frame=frame, window=window, max_pixels=max_pixels)
        return _read_picture(file, file, frame=frame, window=window, max_pixels=max_pixels)
    except OSError as error:
        raise ImageError(f"{file}: cannot be read ({error.strerror or type(error).__name__})") from None


def _read_stored(
    store: ImageStore, name: str, *, frame: int | None, slice_index: int | None, window: Any, max_pixels: int
) -> LoadedImage:
    path = Path(name)
    if slice_index is not None or is_volume(path) or path.suffix.lower() in DICOM_SUFFIXES:
        raise ImageError(f"{name}: volumes and DICOM files are read from folders only; unpack it and name the file")
    _check_window(path, window)
    try:
        with store.open(name) as file:
            return _read_picture(path, file, frame=frame, window=window, max_pixels=max_pixels)
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror or type(error).__name__})") from None


def _check_window(path: Path, window: Any) -> None:
    try:
        read_window(window)
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from None


def crop_pixels(
    pixels: NDArray[np.uint8], window: tuple[int, int, int, int], *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Cut a window (x0, y0, x1, y1) out of a picture; black where it reaches beyond.

    Shapes: (H, W, 3) -> (y1 - y0, x1 - x0, 3).

    Raises:
        ImageError: an empty or oversized window, or one that misses the picture.
    """
    x0, y0, x1, y1 = (int(v) for v in window)
    height, width = pixels.shape[:2]
    if not (x0 < x1 and y0 < y1) or (x1 - x0) * (y1 - y0) > max_pixels:
        raise ImageError(
            f"crop {tuple(window)} is empty or too large: it needs x0 < x1, y0 < y1 and at most {max_pixels} pixels"
        )
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        raise ImageError(f"crop {tuple(window)} lies outside the picture of {width}x{height} px")
    result = np.zeros((y1 - y0, x1 - x0, 3), dtype=np.uint8)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    result[top - y0 : bottom - y0, left - x0 : right - x0] = pixels[top:bottom, left:right]
    return result


def _read_picture(
    path: Path, source: Path | BinaryIO, *, frame: int | None, window: object, max_pixels: int
) -> LoadedImage:
    """Read a picture from `source`; `path` names it."""
    try:
        # Silent about odd EXIF, and about sizes that are checked just below.
        with silent_libraries(), Image.open(source, formats=PILLOW_FORMATS) as image:
            return _picture_pixels(image, path, frame, window, max_pixels)
    except Image.DecompressionBombError:
        raise ImageError(
            f"{path}: more pixels than Pillow's safety limit: an image bomb? If it is genuine, shrink or tile it first"
        ) from None
    except UnidentifiedImageError:
        if path.suffix.lower() in (".tif", ".tiff"):
            return _read_odd_tiff(path, source, frame, window, max_pixels)
        raise ImageError(f"{path}: not a picture of a supported kind ({SUPPORTED}), or damaged") from None
    except ImageError:
        raise
    except (OSError, SyntaxError, EOFError, ValueError, IndexError, OverflowError, MemoryError) as error:
        # Pillow's ways to say that a stream ends early or makes no sense.
        raise ImageError(f"{path}: the picture is truncated or damaged ({type(error).__name__})") from None


def _picture_pixels(
    image: Image.Image, path: Path, frame: int | None, window: object, max_pixels: int, *, in_place: bool = True
) -> LoadedImage:
    """Return the pixels of an opened picture; `in_place` turns the picture itself upright, which saves a copy."""
    num_frames = int(getattr(image, "n_frames", 1))
    if not 0 <= (frame or 0) < num_frames:
        raise ImageError(f"{path}: frame is {frame}, but there are {num_frames} frames (0 to {num_frames - 1})")
    if frame:
        image.seek(frame)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width}x{height} px is over the limit of {max_pixels} pixels: an image bomb? If it is genuine, "
            "raise max_pixels, or shrink or tile it first"
        )
    info = {"kind": (image.format or "picture").lower(), "num_frames": num_frames, "windows": [], "spacing_mm": None}
    deep = image.mode.startswith("I") or image.mode == "F"
    largest = _tiff_number(image, TIFF_MAX_SAMPLE_VALUE)
    white_is_zero = _tiff_number(image, TIFF_PHOTOMETRIC) == 0
    image.load()
    if in_place:
        ImageOps.exif_transpose(image, in_place=True)
    else:
        image = ImageOps.exif_transpose(image)
    if deep:
        grey = _deep_grey(np.asarray(image), path, window, largest)
        return LoadedImage(255 - grey if white_is_zero else grey, None, info)
    if window is not None:
        raise ImageError(f"{path}: an 8-bit picture holds grey levels, not measured values: it takes no window")
    return LoadedImage(np.asarray(_rgb(image)), None, info)


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


def _deep_grey(values: NDArray[Any], path: Path, window: object, declared: int | None) -> NDArray[np.uint8]:
    """Grey levels of deep pixels: by window, declared range or usual depth; signed and real ones by percentiles."""
    windows = read_window(window)
    if windows is not None:
        if any(isinstance(w, int | str) for w in windows):
            raise ImageError(
                f"{path}: this file is not in Hounsfield units and states no windows; give (center, width)"
            )
        units = [apply_window(values, w) for w in windows if isinstance(w, tuple)]
    elif np.issubdtype(values.dtype, np.integer) and values.size and values.min() >= 0 and values.max() < 2**16:
        largest = int(values.max())
        known = declared if declared is not None and declared >= largest else declared_depth(largest)
        units = [apply_range(values, 0.0, float(known))]
    else:
        units = [apply_range(values, *percentile_range(values))]
    channels = [to_grey(unit) for unit in units]
    if values.ndim == 3:  # 16-bit colour
        return np.ascontiguousarray(channels[0][..., :3])
    return np.stack(channels * 3 if len(channels) == 1 else channels, axis=-1)


def _read_odd_tiff(
    path: Path, source: Path | BinaryIO, frame: int | None, window: object, max_pixels: int
) -> LoadedImage:
    """Read the TIFF kinds Pillow does not know, such as 16-bit colour."""
    tifffile = import_optional("tifffile", "medical", f"{path}: this kind of TIFF")
    try:
        with tifffile.TiffFile(source) as file:
            num_frames = len(file.pages)
            if not 0 <= (frame or 0) < num_frames:
                raise ImageError(f"{path}: frame is {frame}, but there are {num_frames} frames (0 to {num_frames - 1})")
            page: Any = file.pages[frame or 0]
            if int(page.imagewidth) * int(page.imagelength) > max_pixels:
                raise ImageError(f"{path}: over the limit of {max_pixels} pixels; raise max_pixels")
            values = page.asarray()
            white_is_zero = int(page.photometric) == 0
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{path}: the TIFF is damaged or of an unsupported kind ({type(error).__name__})") from None
    if values.ndim == 3 and values.shape[0] in (3, 4) and values.shape[2] not in (3, 4):
        values = np.moveaxis(values, 0, -1)  # colour planes one after another
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise ImageError(f"{path}: a TIFF page of shape {values.shape} is not a picture")
    info = {"kind": "tiff", "num_frames": num_frames, "windows": [], "spacing_mm": None}
    grey = _deep_grey(values, path, window, None)
    return LoadedImage(255 - grey if white_is_zero else grey, None, info)

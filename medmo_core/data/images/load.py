"""Any supported picture file to uint8 RGB, with its place in the patient where the file knows it."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records.sample import ImageRef
from ..records.store import ImageStore, Root
from .dicom import SUFFIXES as DICOM_SUFFIXES
from .dicom import is_dicom, read_dicom
from .dicom_series import is_series, read_series_slice
from .intensity import read_window
from .loaded import MAX_PIXELS, SAFE_FIELDS, ImageError, LoadedImage, own_errors
from .picture import from_pillow, read_picture
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


def safe_path(path: str | Path, root: str | Path | None) -> Path:
    """Return the file a path names, and refuse paths that leave the data root.

    Args:
        path: relative to `root`; any path, `~` for the home folder too, when `root` is None.
        root: folder that holds the data.

    Raises:
        ImageError: an absolute path, a way up (`..`) or a link that ends outside the root; `~` of an unknown user.
    """
    if root is None:
        try:
            return Path(path).expanduser()
        except RuntimeError:
            raise ImageError(f"{path}: there is no such user here; write the path out") from None
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
    """Read a picture, a DICOM frame or a slice of a volume: of a NIfTI file, or of a folder of DICOM slices.

    Args:
        path: the file, or a folder with the slices of one DICOM series, relative to `root` when there is one.
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
    _check_choices(path, frame, slice_index, plane)
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


def _check_choices(path: object, frame: object, slice_index: object, plane: object) -> None:
    """Refuse arguments of other types, which libraries would take for damage of the file."""
    if not isinstance(path, str | Path):
        raise ImageError(f"the image is of type {type(path).__name__}, expected the path of a file")
    for name, value in (("frame", frame), ("slice_index", slice_index)):
        if value is not None and (not isinstance(value, int | np.integer) or isinstance(value, bool)):
            raise ImageError(f"{path}: {name} is {value!r}, expected a whole number from 0, or None")
    if not isinstance(plane, str):
        raise ImageError(f"{path}: plane is {plane!r}, expected axial, coronal or sagittal")


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
    with own_errors(file, "the file"):
        check_file(file, root)
        read_window(window)
        if is_volume(file):
            return read_slice(
                file, slice_index=slice_index, plane=plane, frame=frame, window=window, max_pixels=max_pixels
            )
        if is_series(file):
            if frame is not None:
                raise ImageError(
                    f"{file}: frame is for single files; choose a slice of a folder with slice_index={frame}"
                )
            return read_series_slice(file, slice_index=slice_index, plane=plane, window=window, max_pixels=max_pixels)
        if slice_index is not None:
            raise ImageError(
                f"{file}: slice_index is for volumes; choose a frame of a multi-frame file with frame={slice_index}"
            )
        if is_dicom(file):
            return read_dicom(file, frame=frame, window=window, max_pixels=max_pixels)
        return read_picture(file, file, frame=frame, window=window, max_pixels=max_pixels)


def check_file(file: Path, root: str | Path | None) -> None:
    """Refuse a path that leads to no file and to no folder, and a folder with links that leave the data root.

    Raises:
        ImageError: one of these.
    """
    if file.is_dir():
        for link in (one for one in file.iterdir() if root is not None and one.is_symlink()):
            safe_path(link.relative_to(Path(root or "")), root)
    elif file.exists() and not file.is_file():
        raise ImageError(f"{file}: is a pipe, a socket or a device, expected a file or a folder of DICOM slices")
    elif not file.is_file():
        under = f" under the data root {root}" if root else ""
        raise ImageError(f"{file}: no such file{under}; check the path")


def _read_stored(
    store: ImageStore, name: str, *, frame: int | None, slice_index: int | None, window: Any, max_pixels: int
) -> LoadedImage:
    path = Path(name)
    if slice_index is not None or is_volume(path) or path.suffix.lower() in DICOM_SUFFIXES:
        raise ImageError(f"{name}: volumes and DICOM files are read from folders only; unpack it and name the file")
    with own_errors(name):
        read_window(window)
        with store.open(name) as file:
            return read_picture(path, file, frame=frame, window=window, max_pixels=max_pixels)


def crop_pixels(
    pixels: NDArray[np.uint8], window: tuple[int, int, int, int], *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Cut a window (x0, y0, x1, y1) out of a picture; black where it reaches beyond.

    Shapes: (H, W, ...) -> (y1 - y0, x1 - x0, ...).

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
    result = np.zeros((y1 - y0, x1 - x0, *pixels.shape[2:]), dtype=np.uint8)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    result[top - y0 : bottom - y0, left - x0 : right - x0] = pixels[top:bottom, left:right]
    return result

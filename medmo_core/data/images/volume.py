"""NIfTI and MGH files: one slice, in the grey levels of the whole volume."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...optional import import_optional
from .intensity import HOUNSFIELD_WINDOWS, apply_range, apply_window, percentile_range, read_window, to_grey
from .loaded import COPY_AGAIN, ImageError, LoadedImage, silent_libraries
from .planes import LPS_TO_RAS, PlaneCut, cut_plane, picture_size

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
SAMPLED_VOXELS = 2_000_000  # enough for percentiles
SLAB_VOXELS = 2**22
"""Voxels that are read at a time: a compressed volume is never held as a whole."""
MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
MGH_RAS_FLAG = 28  # bytes before it
PIXDIM = {348: (80, "3f"), 540: (112, "3d")}
"""Length of a NIfTI header -> bytes before the size of a voxel, and its numbers."""
RAS_TO_LPS = LPS_TO_RAS  # its own inverse


def is_volume(path: Path) -> bool:
    """Say whether a file name is that of a volume."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def read_slice(
    path: Path,
    *,
    slice_index: int | None = None,
    plane: str = "axial",
    frame: int | None = None,
    window: object = None,
    max_pixels: int,
) -> LoadedImage:
    """Read one slice of a volume, turned for display.

    Args:
        path: NIfTI or MGH file.
        slice_index: slice, counted from the feet (axial), the back (coronal) or the patient's left (sagittal), which is
            nibabel's canonical order; None: the middle.
        plane: axial, coronal or sagittal; an oblique volume gives its nearest own plane.
        frame: time point of a 4-D file; None: the first.
        window: name or range, see `load_image`; None: the display range of the header, else the 0.5 and
            99.5 percentile of the volume.
        max_pixels: refuse volumes with larger slices.

    Returns:
        The slice; its geometry is None where the header does not say how the voxels lie in the patient.

    Raises:
        ImageError: unreadable, truncated, or an index out of range.
    """
    image = _open(path)
    shape = _shape(image, path)
    cut = cut_plane(path, _affine(image), shape[:3], plane=plane, slice_index=slice_index, max_pixels=max_pixels)
    num_frames = int(np.prod(shape[3:], dtype=object))
    if not 0 <= (frame or 0) < num_frames:
        raise ImageError(f"{path}: frame is {frame}, but there are {num_frames} time points (0 to {num_frames - 1})")
    values = cut.turn(_slice(image, cut, _time_point(image, frame or 0)))
    pixels = _grey(values, image, path, window, frame or 0)
    info: dict[str, Any] = {"kind": "volume", "num_frames": num_frames, "windows": [], "spacing_mm": None}
    if not _is_placed(image):  # the library makes up an affine then
        return LoadedImage(pixels, None, info)
    return LoadedImage(pixels, cut.geometry, {**info, "spacing_mm": cut.geometry.spacing_mm, "plane": plane})


def read_size(path: Path, plane: str = "axial") -> tuple[int, int]:
    """Return (width, height) in px of a plane's slices as the header states them; no voxel is read.

    Raises:
        ImageError: not a readable volume, or no such plane.
    """
    image = _open(path)
    return picture_size(path, _affine(image), _shape(image, path), plane)


def _open(path: Path) -> Any:
    nibabel = import_optional("nibabel", "medical", f"{path}: reading volumes")
    try:
        with silent_libraries():
            # A compressed file is read on, not again, slab after slab.
            return nibabel.load(path, keep_file_open=True)
    except Exception as error:  # nibabel raises many kinds; a header's text must not reach the message
        raise ImageError(f"{path}: not a readable NIfTI or MGH file ({type(error).__name__}); {COPY_AGAIN}") from None


def _shape(image: Any, path: Path) -> tuple[int, ...]:
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or min(shape) < 1 or image.affine is None:
        raise ImageError(f"{path}: a volume needs three dimensions, this one has shape {shape}; name a picture file")
    return shape


def _affine(image: Any) -> NDArray[np.float64]:
    """Return the map from voxels to millimetres in LPS, from whichever unit of length the header states."""
    units = image.header.get_xyzt_units()[0] if hasattr(image.header, "get_xyzt_units") else "mm"
    scale = np.diag([MILLIMETRES.get(units, 1.0)] * 3 + [1.0])
    return RAS_TO_LPS @ scale @ np.asarray(image.affine, dtype=np.float64)


def _is_placed(image: Any) -> bool:
    """Say whether the header states how the voxels lie in the patient."""
    header = image.header
    if "qform_code" in header:
        if int(header["sform_code"]) > 0 or int(header["qform_code"]) == 0:
            return int(header["sform_code"]) > 0
        place, numbers = PIXDIM[int(header["sizeof_hdr"])]
        data = _header_bytes(image, place, struct.calcsize(numbers))
        return 0 not in struct.unpack(header.endianness + numbers, data)  # a size that nibabel would make up
    return "goodRASFlag" not in header or _header_bytes(image, MGH_RAS_FLAG, 2) != b"\0\0"


def _header_bytes(image: Any, place: int, count: int) -> bytes:
    """Return bytes of a file's header as they stand there: nibabel corrects what it has read."""
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        file.seek(place)
        return file.read(count)


def _time_point(image: Any, frame: int) -> tuple[int, ...]:
    """Return the indices along the axes beyond the third."""
    return tuple(int(i) for i in np.unravel_index(frame, image.shape[3:])) if image.shape[3:] else ()


def _slice(image: Any, cut: PlaneCut, time_point: tuple[int, ...]) -> NDArray[Any]:
    """Read one slice: at once where it is stored in one piece, else out of slabs."""
    if cut.axis == 2:
        return _voxels(image, (slice(None), slice(None), cut.index, *time_point))
    return np.concatenate([slab.take(cut.index, cut.axis) for _, slab in _slabs(image, time_point)], axis=1)


def _slabs(image: Any, time_point: tuple[int, ...]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield a time point's voxels in slabs along the third axis, each with the index of its first slice."""
    width, height, depth = image.shape[:3]
    step = max(1, SLAB_VOXELS // (width * height))
    for start in range(0, depth, step):
        yield start, _voxels(image, (slice(None), slice(None), slice(start, start + step), *time_point))


def _voxels(image: Any, picker: tuple[Any, ...]) -> NDArray[Any]:
    try:
        values = np.asarray(image.dataobj[picker])
    except Exception as error:
        raise ImageError(
            f"{image.get_filename()}: the voxels cannot be read: truncated or damaged ({type(error).__name__}); "
            f"{COPY_AGAIN}"
        ) from None
    if values.dtype.names:  # RGB voxels
        return np.stack([values[name] for name in values.dtype.names[:3]], axis=-1)
    if np.iscomplexobj(values):
        return np.abs(values)
    return values


def _grey(values: NDArray[Any], image: Any, path: Path, window: object, frame: int) -> NDArray[np.uint8]:
    if values.ndim == 3:
        if window is not None:
            raise ImageError(f"{path}: a volume of colours holds no measured values: it takes no window; leave it out")
        return np.ascontiguousarray(values.astype(np.uint8))
    windows = read_window(window)
    if windows is None:
        low, high = _display_range(image, path, frame)
        channels = [to_grey(apply_range(values, low, high))] * 3
    else:
        if any(isinstance(w, int) for w in windows):
            raise ImageError(f"{path}: a volume file states no windows; give a name or (center, width)")
        pairs = [HOUNSFIELD_WINDOWS[w] if isinstance(w, str) else w for w in windows]
        shown = [to_grey(apply_window(values, pair)) for pair in pairs if not isinstance(pair, int)]
        channels = shown * 3 if len(shown) == 1 else shown
    return np.stack(channels, axis=-1)


def _display_range(image: Any, path: Path, frame: int) -> tuple[float, float]:
    header = image.header
    if "cal_min" in header and float(header["cal_max"]) > float(header["cal_min"]):
        return float(header["cal_min"]), float(header["cal_max"])
    stat = path.stat()
    return _volume_percentiles(str(path), frame, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _volume_percentiles(path: str, frame: int, mtime_ns: int, num_bytes: int) -> tuple[float, float]:
    """Percentiles of one time point; kept, because one volume is read slice after slice."""
    image = _open(Path(path))
    width, height, depth = image.shape[:3]
    step = max(1, width * height * depth // SAMPLED_VOXELS)
    kept = []
    for start, slab in _slabs(image, _time_point(image, frame)):
        if step == 1:
            kept.append(slab.ravel())
            continue
        # Every step-th voxel of the volume, counted with the third axis running fastest.
        counts = np.arange(width * height).reshape(width, height, 1) * depth + np.arange(start, start + slab.shape[2])
        kept.append(slab[counts % step == 0])
    return percentile_range(np.concatenate(kept))

"""NIfTI and MGH slices, turned for display: the patient's left on the right of the picture, front or head up."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...optional import import_optional
from .geometry import Geometry
from .intensity import HOUNSFIELD_WINDOWS, apply_range, apply_window, percentile_range, read_window, to_grey
from .loaded import ImageError, LoadedImage

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
MAX_VOXELS = 2**30
SAMPLED_VOXELS = 2_000_000  # enough for percentiles

# plane -> patient axis (x, y, z) across the slices, then along the picture's x and y, and the signs in LPS of these
PLANES = {
    "axial": (2, (0, 1), (1, 1)),  # x to the left, y to the back
    "coronal": (1, (0, 2), (1, -1)),  # x to the left, y to the feet
    "sagittal": (0, (1, 2), (1, -1)),  # x to the back, y to the feet
}
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


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
        max_pixels: refuse larger slices.

    Raises:
        ImageError: unreadable, truncated, or an index out of range.
    """
    if plane not in PLANES:
        raise ImageError(f"{path}: plane is {plane!r}, expected one of {', '.join(PLANES)}")
    image = _open(path)
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or min(shape) < 1 or image.affine is None:
        raise ImageError(f"{path}: a volume needs three dimensions, this one has shape {shape}")
    across, in_plane, _ = PLANES[plane]
    axis_of = _voxel_axes(np.asarray(image.affine), path)
    num_slices = shape[axis_of[across]]
    width, height = shape[axis_of[in_plane[0]]], shape[axis_of[in_plane[1]]]
    if width * height > max_pixels or int(np.prod(shape[:3], dtype=object)) > MAX_VOXELS:
        raise ImageError(
            f"{path}: a volume of shape {shape} is over the limit of {max_pixels} pixels a slice; raise max_pixels"
        )
    index = num_slices // 2 if slice_index is None else slice_index
    if not 0 <= index < num_slices:
        raise ImageError(
            f"{path}: slice_index is {index}, but there are {num_slices} {plane} slices (0 to {num_slices - 1})"
        )
    num_frames = int(np.prod(shape[3:], dtype=object))
    if not 0 <= (frame or 0) < num_frames:
        raise ImageError(f"{path}: frame is {frame}, but there are {num_frames} time points (0 to {num_frames - 1})")

    affine = RAS_TO_LPS @ np.asarray(image.affine, dtype=np.float64)
    values, geometry = _turn(
        image, affine, axis_of, plane, index, np.unravel_index(frame or 0, shape[3:]) if shape[3:] else ()
    )
    info = {
        "kind": "volume",
        "spacing_mm": geometry.spacing_mm,
        "num_frames": num_frames,
        "plane": plane,
        "windows": [],
    }
    return LoadedImage(_grey(values, image, path, window, frame or 0), geometry, info)


def _open(path: Path) -> Any:
    nibabel = import_optional("nibabel", "medical", f"{path}: reading volumes")
    try:
        return nibabel.load(path)
    except Exception as error:  # nibabel raises many kinds; a header's text must not reach the message
        raise ImageError(f"{path}: not a readable NIfTI or MGH file ({type(error).__name__})") from None


def _voxel_axes(affine: NDArray[np.float64], path: Path) -> list[int]:
    """Which voxel axis runs nearest to the patient's x, y and z."""
    from nibabel.orientations import io_orientation

    try:
        ornt = io_orientation(affine)
    except (ValueError, np.linalg.LinAlgError):
        ornt = np.full((3, 2), np.nan)
    if np.isnan(ornt).any():
        raise ImageError(f"{path}: the affine does not say how the voxels lie in the patient")
    return [int(np.flatnonzero(ornt[:, 0] == axis)[0]) for axis in range(3)]


def _turn(
    image: Any, affine: NDArray[np.float64], axis_of: list[int], plane: str, index: int, frame: tuple[Any, ...]
) -> tuple[NDArray[Any], Geometry]:
    """Cut out one slice, flip it for display, and compute where its first pixel and its axes lie."""
    across, in_plane, signs = PLANES[plane]
    slice_axis = axis_of[across]
    # Canonical order counts towards the patient's right, front and head; LPS x and y run the other way.
    towards_canonical = affine[across, slice_axis] * (1 if across == 2 else -1) > 0
    stored = index if towards_canonical else image.shape[slice_axis] - 1 - index
    first = np.zeros(4)
    first[3], first[slice_axis] = 1.0, stored
    picker: list[Any] = [slice(None)] * 3
    picker[slice_axis] = stored
    values = _voxels(image, (*picker, *(int(f) for f in frame)))

    x_axis, y_axis = (axis_of[axis] for axis in in_plane)
    if x_axis < y_axis:
        values = values.swapaxes(0, 1)  # rows are y
    steps = []
    for array_axis, voxel_axis, patient_axis, sign in (
        (1, x_axis, in_plane[0], signs[0]),
        (0, y_axis, in_plane[1], signs[1]),
    ):
        step = affine[:3, voxel_axis].copy()
        if step[patient_axis] * sign < 0:
            values = np.flip(values, array_axis)
            first[voxel_axis] = image.shape[voxel_axis] - 1
            step = -step
        steps.append(step)
    size = (int(values.shape[1]), int(values.shape[0]))
    return values, Geometry.from_first_center((affine @ first)[:3].tolist(), steps[0].tolist(), steps[1].tolist(), size)


def _voxels(image: Any, picker: tuple[Any, ...]) -> NDArray[Any]:
    try:
        values = np.asarray(image.dataobj[picker])
    except Exception as error:
        raise ImageError(
            f"{image.get_filename()}: the voxels cannot be read: truncated or damaged ({type(error).__name__})"
        ) from None
    if values.dtype.names:  # RGB voxels
        return np.stack([values[name] for name in values.dtype.names[:3]], axis=-1)
    if np.iscomplexobj(values):
        return np.abs(values)
    return values


def _grey(values: NDArray[Any], image: Any, path: Path, window: object, frame: int) -> NDArray[np.uint8]:
    if values.ndim == 3:
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
    extra = tuple(int(i) for i in np.unravel_index(frame, image.shape[3:])) if image.shape[3:] else ()
    values = _voxels(image, (slice(None),) * 3 + extra).ravel()
    return percentile_range(values[:: max(1, values.size // SAMPLED_VOXELS)])

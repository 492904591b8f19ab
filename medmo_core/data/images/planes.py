"""Planes through a volume, turned for display: the patient's left on the right of the picture, front or head up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...optional import import_optional
from .geometry import Geometry
from .loaded import ImageError

# plane -> patient axis (x, y, z) across the slices, then along the picture's x and y, and the signs in LPS of these
PLANES = {
    "axial": (2, (0, 1), (1, 1)),  # x to the left, y to the back
    "coronal": (1, (0, 2), (1, -1)),  # x to the left, y to the feet
    "sagittal": (0, (1, 2), (1, -1)),  # x to the back, y to the feet
}
MAX_VOXELS = 2**30
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class PlaneCut:
    """One slice of a volume: where it is stored, and how it is turned.

    Attributes:
        axis: voxel axis across the slices.
        index: stored index along it.
        transposed: whether the voxel axis with the lower number runs along the picture's x.
        flips: array axes to reverse, after transposing.
        geometry: place of the turned picture in the patient.
    """

    axis: int
    index: int
    transposed: bool
    flips: tuple[int, ...]
    geometry: Geometry

    def turn(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the slice as it is displayed.

        Shapes: two voxel axes in their stored order, then any -> (H, W), then any.
        """
        return np.flip(values.swapaxes(0, 1) if self.transposed else values, self.flips)


def picture_size(path: Path, affine: NDArray[np.float64], shape: tuple[int, ...], plane: str) -> tuple[int, int]:
    """Return (width, height) in px of a plane's pictures; arguments as for `cut_plane`."""
    _, in_plane, _ = _known(path, plane)
    axis_of = _voxel_axes(affine, path)
    return shape[axis_of[in_plane[0]]], shape[axis_of[in_plane[1]]]


def cut_plane(
    path: Path,
    affine: NDArray[np.float64],
    shape: tuple[int, ...],
    *,
    plane: str,
    slice_index: int | None,
    max_pixels: int,
) -> PlaneCut:
    """Find a slice in a volume.

    Args:
        path: file or folder, for messages.
        affine: map from voxel indices to millimetres in LPS, (4, 4).
        shape: numbers of voxels along the three voxel axes.
        plane: axial, coronal or sagittal; an oblique volume gives its nearest own plane.
        slice_index: slice, counted from the feet (axial), the back (coronal) or the patient's left (sagittal), which is
            nibabel's canonical order; None: the middle.
        max_pixels: largest slice, in any plane.

    Raises:
        ImageError: an unknown plane, no such slice, or a volume over the limit.
    """
    across, in_plane, signs = _known(path, plane)
    axis_of = _voxel_axes(affine, path)
    num_voxels = shape[0] * shape[1] * shape[2]
    if num_voxels // min(shape) > max_pixels or num_voxels > MAX_VOXELS:
        raise ImageError(
            f"{path}: a volume of shape {shape} is over the limit of {max_pixels} pixels a slice and {MAX_VOXELS} "
            "voxels; raise max_pixels, or cut the volume"
        )
    slice_axis = axis_of[across]
    num_slices = shape[slice_axis]
    index = num_slices // 2 if slice_index is None else slice_index
    if not 0 <= index < num_slices:
        raise ImageError(
            f"{path}: slice_index is {index}, but there are {num_slices} {plane} slices (0 to {num_slices - 1})"
        )
    # Canonical order counts towards the patient's right, front and head; LPS x and y run the other way.
    towards_canonical = affine[across, slice_axis] * (1 if across == 2 else -1) > 0
    stored = index if towards_canonical else num_slices - 1 - index
    first = np.zeros(4)
    first[3], first[slice_axis] = 1.0, stored
    x_axis, y_axis = (axis_of[axis] for axis in in_plane)
    steps, flips = [], []
    for array_axis, voxel_axis, patient_axis, sign in (
        (1, x_axis, in_plane[0], signs[0]),
        (0, y_axis, in_plane[1], signs[1]),
    ):
        step = affine[:3, voxel_axis].copy()
        if step[patient_axis] * sign < 0:
            flips.append(array_axis)
            first[voxel_axis] = shape[voxel_axis] - 1
            step = -step
        steps.append(step.tolist())
    center, size = (affine @ first)[:3].tolist(), (shape[x_axis], shape[y_axis])
    geometry = Geometry.from_first_center(center, steps[0], steps[1], size)
    return PlaneCut(slice_axis, stored, x_axis < y_axis, tuple(flips), geometry)


def _known(path: Path, plane: str) -> tuple[int, tuple[int, int], tuple[int, int]]:
    if plane not in PLANES:
        raise ImageError(f"{path}: plane is {plane!r}, expected one of {', '.join(PLANES)}")
    return PLANES[plane]


def _voxel_axes(affine: NDArray[np.float64], path: Path) -> list[int]:
    """Return which voxel axis runs nearest to the patient's x, y and z."""
    orientations = import_optional("nibabel.orientations", "medical", f"{path}: cutting volumes")
    try:
        ornt = orientations.io_orientation(LPS_TO_RAS @ affine)
    except (ValueError, np.linalg.LinAlgError):
        ornt = np.full((3, 2), np.nan)
    if np.isnan(ornt).any():
        raise ImageError(
            f"{path}: the affine does not say how the voxels lie in the patient; convert it again from its source"
        )
    return [int(np.flatnonzero(ornt[:, 0] == axis)[0]) for axis in range(3)]

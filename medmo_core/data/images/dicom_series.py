"""A folder of DICOM slices as one volume: ordered by their place in the patient, complete, and of one series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dicom import PLACE_TAGS, SUFFIXES, decode_frame, facts_of, frame_count, is_dicom, open_dicom, picture_size
from .dicom_values import FrameView, Mask, is_colour, measured, padding_of, show_grey
from .geometry import Geometry
from .loaded import ImageError, LoadedImage, silent_libraries
from .planes import PlaneCut, cut_plane
from .planes import picture_size as plane_size

UNEVEN = 0.05
"""Share of the distance between slices by which a slice may lie away from its place."""
SAME_PLACE_MM = 1e-4
SAME_DIRECTION = 1e-3
ONE_FOLDER = "put the slices of one series into a folder of their own"


@dataclass(frozen=True)
class Series:
    """Slices of one volume in order.

    Attributes:
        folder: where they lie.
        files: files, by place along the normal of the slices.
        affine: map from (column, row, slice) to millimetres in LPS, (4, 4).
        shape: columns, rows and slices.
    """

    folder: Path
    files: tuple[Path, ...]
    affine: NDArray[np.float64]
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class _Place:
    """Place of one file's slice, and its series."""

    file: Path
    geometry: Geometry
    series: str


def is_series(path: Path) -> bool:
    """Say whether a path is a folder, which stands for the volume of the slices in it."""
    return path.is_dir()


def read_series_slice(
    folder: Path, *, slice_index: int | None = None, plane: str = "axial", window: object = None, max_pixels: int
) -> LoadedImage:
    """Read one slice of the volume that a folder of DICOM slices holds, turned for display.

    Args:
        folder: folder with the slices of one series; files that are not DICOM are passed over.
        slice_index: slice, counted as for NIfTI: from the feet (axial), the back (coronal) or the patient's left
            (sagittal); None: the middle.
        plane: axial, coronal or sagittal, from whichever plane the slices were taken in.
        window: name or range, see `load_image`; None: as for a single file, by the middle slice's header.
        max_pixels: refuse volumes with larger slices.

    Raises:
        ImageError: the folder holds no slices, several series, slices of different sizes or directions, gaps, or two
            slices in one place.
    """
    with silent_libraries():
        series = read_series(folder)
        cut = cut_plane(
            folder, series.affine, series.shape, plane=plane, slice_index=slice_index, max_pixels=max_pixels
        )
        if cut.axis == 2:
            file = series.files[cut.index]
            values, padding, view = _measure(file)
        else:
            file = series.files[len(series.files) // 2]
            values, padding, view = _across(series, cut)
        windows = view.windows()
        mask = None if padding is None else cut.turn(padding)
        pixels = show_grey(cut.turn(values), mask, view, file, window)
    info = {**facts_of(view.dataset), "windows": windows, "spacing_mm": cut.geometry.spacing_mm, "plane": plane}
    return LoadedImage(np.ascontiguousarray(pixels), cut.geometry, {"kind": "dicom", "num_frames": 1, **info})


def read_series_size(folder: Path, plane: str = "axial") -> tuple[int, int]:
    """Return (width, height) in px of a plane's slices, from headers alone.

    Raises:
        ImageError: as for `read_series_slice`.
    """
    with silent_libraries():
        series = read_series(folder)
        return plane_size(folder, series.affine, series.shape, plane)


def read_series(folder: Path) -> Series:
    """Order the slices of a folder; what was found is kept until one of its files changes.

    Raises:
        ImageError: as for `read_series_slice`.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    stats = ((file.name, file.stat()) for file in files)
    return _ordered(folder, tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats))


@lru_cache(maxsize=64)
def _ordered(folder: Path, found: tuple[tuple[str, int, int], ...]) -> Series:
    # An empty file is passed over, but one that is called a slice is a slice that was lost.
    files = [
        folder / name
        for name, _, size in found
        if name.upper() != "DICOMDIR" and (size or name.lower().endswith(SUFFIXES))
    ]
    places = [_place(file) for file in files if is_dicom(file)]
    if not places:
        raise ImageError(
            f"{folder}: a folder without DICOM slices (folders in it are not searched): name a picture, or the "
            "folder that holds the slices of one DICOM series"
        )
    _check_alike(folder, places)
    normal = np.cross(places[0].geometry.x_mm, places[0].geometry.y_mm)
    normal /= np.linalg.norm(normal)
    places.sort(key=lambda place: float(np.dot(normal, place.geometry.origin_mm)))
    step = _even_step(places, normal)
    affine = np.eye(4)
    first = places[0].geometry
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = first.x_mm, first.y_mm, step
    affine[:3, 3] = np.asarray(first.origin_mm) + 0.5 * (affine[:3, 0] + affine[:3, 1])  # the centre of a voxel
    return Series(folder, tuple(place.file for place in places), affine, (*first.size, len(places)))


def _place(file: Path) -> _Place:
    dataset = open_dicom(file, PLACE_TAGS)
    if frame_count(dataset) > 1:
        raise ImageError(
            f"{file}: a file of several frames in a folder of slices: name the file itself, with its frame"
        )
    if is_colour(dataset):
        raise ImageError(f"{file}: a colour picture in a folder of slices: name the file itself")
    geometry = FrameView(dataset, 0).geometry(picture_size(file, dataset), 1)
    if geometry is None:
        raise ImageError(
            f"{file}: does not state its place in the patient, so the slices of this folder have no order: "
            "name the file itself, or take it out of the folder"
        )
    return _Place(file, geometry, str(dataset.get("SeriesInstanceUID") or ""))


def _check_alike(folder: Path, places: list[_Place]) -> None:
    """Refuse slices of several series, sizes or directions."""
    counts = Counter(place.series for place in places)
    if len(counts) > 1:
        numbers = _listed(counts.values())
        raise ImageError(f"{folder}: holds {len(counts)} DICOM series, of {numbers} files: {ONE_FOLDER}")
    sizes = Counter(place.geometry.size for place in places)
    if len(sizes) > 1:
        shown = _listed(f"{width}x{height}" for width, height in sizes)
        raise ImageError(f"{folder}: holds slices of different sizes, {shown} px: {ONE_FOLDER}")
    first = places[0].geometry
    for place in places:
        for name, ours, theirs in (("x", first.x_mm, place.geometry.x_mm), ("y", first.y_mm, place.geometry.y_mm)):
            if np.linalg.norm(np.subtract(ours, theirs)) > SAME_DIRECTION * np.linalg.norm(ours):
                raise ImageError(
                    f"{folder}: {place.file.name} lies in another direction or has another pixel spacing along {name} "
                    f"than {places[0].file.name} (a scout view?): {ONE_FOLDER}"
                )


def _even_step(places: list[_Place], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what one slice adds to a place, in mm; refuse gaps and two slices in one place."""
    origins = np.array([place.geometry.origin_mm for place in places])
    if len(places) == 1:
        return normal  # one slice has no distance to a next one; its own plane is right
    distances = np.diff(origins @ normal)
    usual = float(np.median(distances))
    folder = places[0].file.parent
    closest, worst = int(np.argmin(distances)), int(np.argmax(np.abs(distances - usual)))
    if distances[closest] <= max(UNEVEN * usual, SAME_PLACE_MM):
        pair = f"{places[closest].file.name} and {places[closest + 1].file.name}"
        raise ImageError(
            f"{folder}: {pair} lie in the same place: repeated slices, or several time points or echoes: {ONE_FOLDER}"
        )
    if abs(distances[worst] - usual) > UNEVEN * usual:
        pair = f"{places[worst].file.name} and {places[worst + 1].file.name}"
        raise ImageError(
            f"{folder}: {pair} are {distances[worst]:.2f} mm apart, others {usual:.2f} mm: slices are missing or "
            "unevenly spaced; add the missing ones, or convert the series to an even NIfTI volume"
        )
    step = (origins[-1] - origins[0]) / (len(places) - 1)
    expected = origins[0] + np.arange(len(places))[:, None] * step
    if np.linalg.norm(origins - expected, axis=1).max() > UNEVEN * usual + 0.5 * min(places[0].geometry.spacing_mm):
        raise ImageError(f"{folder}: the slices do not lie in one line (a rotating or moving scan?); name single files")
    return step


def _measure(file: Path) -> tuple[NDArray[np.float64], Mask, FrameView]:
    """Return measured values and padding of a slice, by column and row, and its header."""
    dataset = open_dicom(file)
    view = FrameView(dataset, 0)
    stored = decode_frame(file, dataset, 0)
    padding = padding_of(stored, dataset)
    return measured(stored, view).T, None if padding is None else padding.T, view


def _across(series: Series, cut: PlaneCut) -> tuple[NDArray[np.float64], Mask, FrameView]:
    """Return what `_measure` does of a plane across the files: one line out of each."""
    lines: list[NDArray[np.float64]] = []
    masks: list[Any] = []
    for file in series.files:
        values, padding, _ = _measure(file)
        line = np.take(values, cut.index, axis=cut.axis)
        lines.append(line)
        masks.append(np.zeros(line.shape, bool) if padding is None else np.take(padding, cut.index, axis=cut.axis))
    view = FrameView(open_dicom(series.files[len(series.files) // 2]), 0)
    return np.stack(lines, axis=1), np.stack(masks, axis=1), view


def _listed(values: Iterable[object]) -> str:
    """Return a few values for a message."""
    words = [str(value) for value in values]
    return ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")

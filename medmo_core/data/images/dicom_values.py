"""Grey levels and colours of a DICOM frame, by one pipeline that every file goes through from end to end.

Stored value (its bits and sign), modality (lookup table or slope and intercept), values of interest (lookup table,
window or a range), polarity. PS3.3 C.7.6.3, C.11.1 and C.11.2, PS3.5 section 8.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .geometry import Geometry
from .intensity import HOUNSFIELD_WINDOWS, Window, apply_range, apply_window, percentile_range, read_window, to_grey
from .loaded import ImageError

COLOURS = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""Photometric interpretations of which decoding makes RGB."""
CODE_STRING = re.compile(r"[A-Z0-9 _]{1,16}")  # DICOM's own rule for coded values; anything else is not passed on
Mask = NDArray[np.bool_] | None


class FrameView:
    """Values that hold for one frame: its own functional groups, then the shared ones, then the top of the file."""

    def __init__(self, dataset: Any, index: int) -> None:
        self.dataset = dataset
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
        shared = dataset.get("SharedFunctionalGroupsSequence") or []
        self.groups = [*([per_frame[index]] if index < len(per_frame) else []), *shared[:1]]
        self.index = index

    def get(self, keyword: str, sequence: str) -> Any:
        """Return the value of a keyword, which a frame's own group may state in `sequence`."""
        for group in self.groups:
            items = group.get(sequence)
            if items and items[0].get(keyword) is not None:
                return items[0].get(keyword)
        return self.dataset.get(keyword)

    def windows(self) -> list[tuple[float, float]]:
        """Return the file's own windows (center, width) that show something."""
        centers = floats(self.get("WindowCenter", "FrameVOILUTSequence"))
        widths = floats(self.get("WindowWidth", "FrameVOILUTSequence"))
        return [(c, w) for c, w in zip(centers, widths, strict=False) if w > 0]

    def spacing_mm(self) -> tuple[float, float] | None:
        """Return the size (x, y) of a pixel: PixelSpacing lists the rows first."""
        spacing = floats(self.get("PixelSpacing", "PixelMeasuresSequence"))
        for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
            spacing = spacing or floats(self.dataset.get(keyword))
        return (spacing[1], spacing[0]) if len(spacing) == 2 and min(spacing) > 0 else None

    def geometry(self, size: tuple[int, int], num_frames: int) -> Geometry | None:
        """Return the frame's place in the patient; None where the file does not say."""
        position = floats(self.get("ImagePositionPatient", "PlanePositionSequence"))
        orientation = floats(self.get("ImageOrientationPatient", "PlaneOrientationSequence"))
        spacing = floats(self.get("PixelSpacing", "PixelMeasuresSequence"))
        if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
            return None
        if num_frames > 1 and self.index > 0 and not self.groups:
            return None  # one position for all frames says nothing about the later ones
        try:
            return Geometry.from_dicom(position, orientation, spacing, size)
        except ValueError:  # directions of zero length occur in secondary captures
            return None

    def function(self) -> str:
        """Return the name of the function that the file's windows stand for."""
        return str(self.get("VOILUTFunction", "FrameVOILUTSequence") or "LINEAR").strip().upper() or "LINEAR"


def floats(value: Any) -> list[float]:
    """Return the numbers of a header's value; an empty list where one of them cannot be read or is not finite."""
    if value is None or value == "":
        return []
    try:
        values = [float(v) for v in (value if hasattr(value, "__iter__") and not isinstance(value, str) else [value])]
    except (TypeError, ValueError):
        return []
    return values if all(np.isfinite(values)) else []


def bits_lie_high(dataset: Any) -> bool:
    """Say whether the samples are not in the low bits of their words, where readers look for them."""
    high, stored = dataset.get("HighBit"), dataset.get("BitsStored")
    allocated = dataset.get("BitsAllocated")
    numbers = all(isinstance(value, int) for value in (high, stored, allocated))
    return numbers and 0 < stored <= high < allocated


def lowered(words: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Return the samples of whole words: the bits from HighBit downwards, with the sign that they have there."""
    left = int(dataset.BitsAllocated) - 1 - int(dataset.HighBit)
    right = int(dataset.BitsAllocated) - int(dataset.BitsStored)
    return np.right_shift(np.left_shift(words, left), right)


def measured(stored: NDArray[Any], view: FrameView) -> NDArray[np.float64]:
    """Return measured values of stored ones, such as Hounsfield units.

    Raises:
        ValueError: the header's slope or intercept is none.
    """
    lut = view.dataset.get("ModalityLUTSequence")
    if lut:
        return _look_up(stored, *_table(lut[0].LUTDescriptor, lut[0].LUTData, view.dataset))
    slope, intercept = _rescale(view, "RescaleSlope", 1.0), _rescale(view, "RescaleIntercept", 0.0)
    if slope == 0:
        raise InputError("RescaleSlope is 0, so every pixel would have one value; correct the header")
    return stored.astype(np.float64) * slope + intercept


def _rescale(view: FrameView, keyword: str, default: float) -> float:
    """Return the number of a keyword; the default where the header leaves it out."""
    value = view.get(keyword, "PixelValueTransformationSequence")
    numbers = floats(value)
    if value not in (None, "") and not numbers:  # "1,5": to go on without it would show other values
        raise InputError(f"{keyword} is not a number; write it with a point, or take it out of the header")
    return numbers[0] if numbers else default


def padding_of(stored: NDArray[Any], dataset: Any) -> Mask:
    """Return which stored values stand for no measurement; None where the file does not say."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    limit = limit if isinstance(limit, int) else value
    value, limit = (_signed(number, dataset) for number in (value, limit))
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _signed(number: int, dataset: Any) -> int:
    """Return a number of the header as the pixels have it: some writers state -2000 of signed pixels as 63536."""
    whole = 2 ** int(dataset.get("BitsAllocated") or 16)
    return number - whole if dataset.get("PixelRepresentation") == 1 and number >= whole // 2 else number


def show_grey(
    values: NDArray[np.float64], padding: Mask, view: FrameView, path: Path, window: object
) -> NDArray[np.uint8]:
    """Return grey levels of measured values.

    Shapes: (H, W) -> (H, W, 3).

    Args:
        values: measured values.
        padding: pixels that stay black.
        view: header of the frame.
        path: file, for messages.
        window: name or range, see `load_image`; None: what the file says.

    Raises:
        ImageError: the file does not have this window.
    """
    windows = read_window(window)
    if windows is None:
        unit_channels = [_default_unit(values, padding, view)]
    else:
        unit_channels = [_windowed(values, one, view, path) for one in windows]
    inverted = view.dataset.get("PhotometricInterpretation") == "MONOCHROME1"
    channels = [to_grey(1.0 - unit if inverted else unit) for unit in unit_channels]
    if padding is not None:
        for channel in channels:
            channel[padding] = 0
    return np.stack(channels * 3 if len(channels) == 1 else channels, axis=-1)


def is_colour(dataset: Any) -> bool:
    """Say whether a frame has colours."""
    return int(dataset.get("SamplesPerPixel") or 1) > 1 or dataset.get("PhotometricInterpretation") == "PALETTE COLOR"


def show_colour(stored: NDArray[Any], dataset: Any, path: Path, window: object) -> NDArray[np.uint8]:
    """Return RGB of a colour frame; the decoder has already left YBR."""
    if window is not None:
        raise ImageError(f"{path}: a colour picture holds no measured values: it takes no window; leave it out")
    if dataset.PhotometricInterpretation not in COLOURS:
        raise ImageError(f"{path}: its colours are none of {', '.join(COLOURS)}; save it as RGB")
    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        tables = _palette(dataset, path)
        stored = np.stack([_look_up(stored, table, first) for table, first in tables], axis=-1).astype(np.uint16)
    if bits < 8:
        return to_grey(apply_range(stored, 0.0, 2.0**bits - 1.0))
    return (stored >> (bits - 8)).astype(np.uint8)


def _palette(dataset: Any, path: Path) -> list[tuple[NDArray[Any], int]]:
    """Return the tables of red, green and blue, each with the first value that it maps."""
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    if f"{names[0]}Data" in dataset:
        return [_table(dataset[f"{n}Descriptor"].value, dataset[f"{n}Data"].value, dataset) for n in names]
    from pydicom.pixels import apply_color_lut

    count, first, bits = (int(v) for v in dataset.RedPaletteColorLookupTableDescriptor)
    if bits == 8 and not 0 < count <= 256:  # pydicom counts entries in the type of an entry
        raise ImageError(f"{path}: a segmented palette of {count} entries of 8 bits is not read; save it as RGB")
    expanded = apply_color_lut(np.arange(count or 65536) + first, dataset)
    return [(expanded[:, channel], first) for channel in range(3)]


def _table(descriptor: Any, data: Any, dataset: Any) -> tuple[NDArray[Any], int]:
    """Return the entries of a lookup table and the first value that it maps."""
    count, first = int(descriptor[0]) or 65536, int(descriptor[1])
    if isinstance(data, bytes):
        little = dataset.original_encoding[1]
        if len(data) in (count, count + count % 2):  # two entries of a byte in one word
            data = np.frombuffer(data, np.uint8)
            data = data if little or len(data) % 2 else data.reshape(-1, 2)[:, ::-1].ravel()
        else:
            data = np.frombuffer(data, "<u2" if little else ">u2")
    return np.atleast_1d(np.asarray(data))[:count], first


def _look_up(values: NDArray[Any], table: NDArray[Any], first: int) -> NDArray[np.float64]:
    """Send values through a lookup table; values beyond its ends take its end entries."""
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return table.astype(np.float64)[index]


def _default_unit(values: NDArray[np.float64], padding: Mask, view: FrameView) -> NDArray[np.float64]:
    """Return values as 0..1 when nobody asked for a window."""
    dataset = view.dataset
    lut = dataset.get("VOILUTSequence")
    if lut:
        looked_up = _look_up(values, *_table(lut[0].LUTDescriptor, lut[0].LUTData, dataset))
        return apply_range(looked_up, 0.0, 2.0 ** int(lut[0].LUTDescriptor[2]) - 1.0)
    windows = view.windows()
    if windows:
        try:
            return apply_window(values, windows[0], view.function())
        except ValueError:  # a width or a function that the standard does not allow: as if there were none
            pass
    if dataset.get("Modality") == "CT":
        return apply_window(values, HOUNSFIELD_WINDOWS["soft_tissue"])
    bits = int(dataset.get("BitsStored") or 16)
    if bits <= 8:
        least = -(2 ** (bits - 1)) if dataset.get("PixelRepresentation") == 1 else 0
        whole = measured(np.arange(least, least + 2**bits), view)
        return apply_range(values, float(whole.min()), float(whole.max()))
    return apply_range(values, *percentile_range(values, padding))


def _windowed(values: NDArray[Any], window: Window | str | int, view: FrameView, path: Path) -> NDArray[np.float64]:
    if isinstance(window, str):
        modality = view.dataset.get("Modality")
        if modality != "CT":
            raise ImageError(
                f"{path}: window {window!r} is in Hounsfield units, but the modality is "
                f"{modality if CODE_STRING.fullmatch(str(modality)) else 'unknown'}; give (center, width)"
            )
        return apply_window(values, HOUNSFIELD_WINDOWS[window])
    if isinstance(window, int):
        windows = view.windows()
        if window >= len(windows):
            raise ImageError(
                f"{path}: window index is {window}, but the file has {len(windows)} windows; give (center, width)"
            )
        return apply_window(values, windows[window], view.function())
    return apply_window(values, window)

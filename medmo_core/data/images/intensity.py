"""Grey levels of measured values: windows, declared ranges, percentiles; never one image's own extremes.

Windows follow DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

Window = tuple[float, float]
Values = NDArray[Any]

HOUNSFIELD_WINDOWS: dict[str, Window] = {
    "lung": (-600.0, 1500.0),
    "soft_tissue": (40.0, 400.0),
    "abdomen": (60.0, 400.0),
    "liver": (80.0, 150.0),
    "mediastinum": (50.0, 350.0),
    "brain": (40.0, 80.0),
    "bone": (400.0, 1800.0),
}
"""(center, width) in Hounsfield units under the names used at the workstation."""

LOW_PERCENT, HIGH_PERCENT = 0.5, 99.5


def to_grey(unit: Values) -> NDArray[np.uint8]:
    """Round values of 0..1 to grey levels 0..255."""
    return np.rint(np.clip(np.nan_to_num(unit), 0.0, 1.0) * 255.0).astype(np.uint8)


def apply_window(values: Values, window: Window, function: str | None = None) -> Values:
    """Return values seen through a window, as 0..1.

    Args:
        values: measured values after rescaling (Hounsfield units for CT).
        window: (center, width).
        function: VOI LUT Function: LINEAR, LINEAR_EXACT or SIGMOID; None: LINEAR, or LINEAR_EXACT for widths of at
            most 1, where LINEAR means nothing (volumes scaled to 0..1).

    Raises:
        ValueError: a width that shows nothing, or an unknown function.
    """
    center, width = window
    values = np.asarray(values, dtype=np.float64)
    function = function or ("LINEAR" if width > 1 else "LINEAR_EXACT")
    if function == "SIGMOID":
        _check_width(width, 0.0, function)
        exponent = np.clip(-4.0 * (values - center) / width, -700.0, 700.0)
        return 1.0 / (1.0 + np.exp(exponent))
    if function == "LINEAR_EXACT":
        _check_width(width, 0.0, function)
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if function != "LINEAR":
        raise InputError(f"unknown window function {function!r}: use LINEAR, LINEAR_EXACT or SIGMOID")
    if width == 1:  # DICOM's smallest: a step
        return (values > center - 0.5).astype(np.float64)
    _check_width(width, 1.0, function)
    return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _check_width(width: float, least: float, function: str) -> None:
    if not width > least:
        raise InputError(f"window width {width:g} is too small for {function}: it must be above {least:g}")


def apply_range(values: Values, low: float, high: float) -> Values:
    """Return values of low..high as 0..1, clipped; a range without width shows nothing but black."""
    if not high > low:
        return np.zeros(np.shape(values), dtype=np.float64)
    return np.clip((np.asarray(values, dtype=np.float64) - low) / (high - low), 0.0, 1.0)


def percentile_range(values: Values, padding: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Return the 0.5 and 99.5 percentile of what is finite and not padding; (0, 0) when nothing is left."""
    flat = np.asarray(values)
    kept = flat[~padding] if padding is not None else flat.ravel()
    if np.issubdtype(kept.dtype, np.floating):
        kept = kept[np.isfinite(kept)]
    if kept.size == 0:
        return 0.0, 0.0
    low, high = (float(v) for v in np.percentile(kept, [LOW_PERCENT, HIGH_PERCENT]))
    if high <= low:  # nearly everything is one value: show the rest
        low, high = float(kept.min()), float(kept.max())
    return low, high


def declared_depth(largest: int, bits: int = 16) -> int:
    """Return the largest value of the smallest usual depth (8, 10, 12, 14, 16 bits) that holds `largest`.

    16-bit files are often 10- or 12-bit detectors; steps of depth keep one detector's images comparable where
    stretching each image to its own maximum would not.
    """
    return next((2**depth - 1 for depth in (8, 10, 12, 14) if depth < bits and largest < 2**depth), 2**bits - 1)


def read_window(window: object) -> list[Window | str | int] | None:
    """Check a `window` argument: None, a preset's name, (center, width), the index of a file's own, or three of these.

    Three windows become the red, green and blue channel.

    Returns:
        None, or a list of one or three windows.

    Raises:
        ValueError: anything else, naming the presets.
    """
    if window is None:
        return None
    if isinstance(window, list | tuple) and len(window) == 3:
        return [_one_window(w) for w in window]
    return [_one_window(window)]


def _one_window(window: object) -> Window | str | int:
    if isinstance(window, str) and window in HOUNSFIELD_WINDOWS:
        return window
    if isinstance(window, int) and not isinstance(window, bool) and window >= 0:
        return window
    if isinstance(window, Sequence) and len(window) == 2 and all(isinstance(v, int | float) for v in window):
        center, width = float(window[0]), float(window[1])
        if np.isfinite(center) and np.isfinite(width) and width > 0:
            return center, width
    raise InputError(
        f"window {window!r} is not known: use one of {', '.join(HOUNSFIELD_WINDOWS)}, a (center, width) pair with a "
        "positive width, the index of one of the file's own windows, or three of these for red, green and blue"
    )

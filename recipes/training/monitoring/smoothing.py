"""The thick line of a noisy curve."""

import statistics
from collections.abc import Sequence

SMOOTHED_OVER = 50
"""Parts of a run, two of which a median is taken over."""


def running_median(values: Sequence[float]) -> list[float] | None:
    """Return the smoothed line of a curve: medians over two of `SMOOTHED_OVER` parts; None where values are few.

    Towards the ends the window shrinks equally on both sides: one that is cut on one side would lag behind a trend.
    """
    window = len(values) // SMOOTHED_OVER
    if window < 2:
        return None
    halves = (min(window, i, len(values) - 1 - i) for i in range(len(values)))
    return [statistics.median(values[i - half : i + half + 1]) for i, half in enumerate(halves)]

"""Steps that must not change the weights: a loss that is NaN or infinite, or one far above the recent ones."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from medmo_core.errors import BadStep

WINDOW = 64  # finished steps whose median a step is held against
NEEDED = 16  # of them, before there is a judgement


class NonFiniteLoss(BadStep):
    """A loss or gradient that is not a number."""


class LossSpike(BadStep):
    """A loss far above those of the steps before."""


class SpikeGuard:
    """Losses of the last steps, and how high the next may be.

    Args:
        spike_ratio: a step's loss may be so many times the median of the last 64; 0 = any.
    """

    def __init__(self, spike_ratio: float) -> None:
        self.spike_ratio = spike_ratio
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def limit(self) -> float:
        """Return the highest loss that is no spike; infinite until 16 steps are finished."""
        if not self.spike_ratio or len(self._losses) < NEEDED:
            return math.inf
        return self.spike_ratio * statistics.median(self._losses)

    def finished(self, loss: float) -> None:
        """Add the loss of a step that was taken."""
        self._losses.append(loss)

    def state(self) -> dict[str, Any]:
        """Return JSON values for a checkpoint."""
        return {"losses": list(self._losses)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._losses = deque(state["losses"], maxlen=WINDOW)

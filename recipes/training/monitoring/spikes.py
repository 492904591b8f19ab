"""What stops a run before a weight changes: a loss that is not a number, or one far above the recent ones."""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ..loop.run import Run

WINDOW = 64  # finished steps whose median a step is held against
NEEDED = 16  # of them, before there is a judgement


class BadStep(ValueError):
    """A step that must not change the weights; the message names the samples."""


class NonFiniteLoss(BadStep):
    """A loss or gradient that is not a number."""


class LossSpike(BadStep):
    """A loss far above those of the steps before."""


class Watch:
    """Know the losses of the last steps and how high the next may be.

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


def not_finite(run: Run, step: int, what: str, suspects: Sequence[str]) -> NonFiniteLoss:
    """Record and return why a step (0-based) cannot be taken; every process calls this.

    Args:
        run: the open run.
        step: 0-based number of the step.
        what: is not finite.
        suspects: samples of this process that may be to blame.
    """
    return NonFiniteLoss(_message(run, "not_finite", step, what, suspects))


def spike(run: Run, step: int, loss: float, limit: float, suspects: Sequence[str]) -> LossSpike:
    """Record and return why a step (0-based) is not taken; every process calls this.

    Args:
        run: the open run.
        step: 0-based number of the step.
        loss: of the step.
        limit: what it exceeds.
        suspects: samples of this process whose own loss exceeds it too.
    """
    ratio = run.config.train.spike_ratio
    what = f"the loss is {loss:.4g}, {ratio * loss / limit:.3g} times the median of the last steps"
    way_out = f"mend or remove them, or set train.spike_ratio={ratio:g} higher (0: never stop)"
    return LossSpike(f"{_message(run, 'spike', step, what, suspects)}; {way_out}")


def _message(run: Run, event: str, step: int, what: str, suspects: Sequence[str]) -> str:
    names = [name for names in run.world.gather(list(suspects)) for name in names]
    run.log.event(event, step=step + 1, samples=names)
    run.wait()  # a checkpoint that is still being written counts
    newest = run.checkpoints.newest()
    kept = f"the newest checkpoint is {newest}" if newest is not None else "there is no checkpoint yet"
    return f"step {step + 1}: {what}, with samples {', '.join(names)}. No weight was changed; {kept}"

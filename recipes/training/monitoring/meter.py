"""Speed and resources of a run: counted step by step, logged with every line of metrics, added up at the end."""

import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..distributed.world import World
from .flops import peak_flops


@dataclass
class Tally:
    """Counts of some steps, on all processes together."""

    steps: int = 0
    tokens: int = 0
    documents: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def add(self, other: "Tally") -> None:
        """Add another tally to this one."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class Meter:
    """Tally of the steps since the last line of metrics, and of the whole run, resumed parts included.

    Args:
        world: the processes, each with its own device.
    """

    def __init__(self, world: World) -> None:
        self.world, self.peak = world, peak_flops(world.device)
        self.run = Tally()
        self._line = Tally()
        self._waited_s = 0.0

    def add(self, tally: Tally, waited_s: float) -> None:
        """Count steps.

        Args:
            tally: counts of all processes.
            waited_s: seconds that this process waited for its batches.
        """
        self.run.add(tally)
        self._line.add(tally)
        self._waited_s += waited_s

    def line(self) -> dict[str, float]:
        """Return the rates since the last line, and begin a new one; every process calls this.

        `mfu` is the share of the devices' bf16 peak that useful operations took; absent where the peak is not known.
        `wait_s` and `memory_gib` are those of the process with the most.
        """
        line, steps = self._line, max(1, self._line.steps)
        waits, peaks = zip(*self.world.gather((self._waited_s, peak_memory(self.world.device))), strict=True)
        self._line, self._waited_s = Tally(), 0.0
        values = {
            "tokens_per_s": line.tokens / line.seconds,
            "samples_per_s": line.documents / line.seconds,
            "step_s": line.seconds / steps,
            "wait_s": max(waits) / steps,
            "memory_gib": max(peaks) / 2**30,
        }
        return values | self._mfu(line)

    def totals(self) -> dict[str, float]:
        """Return what the run did so far, by name."""
        run = self.run
        rates = {"tokens_per_s": run.tokens / run.seconds} if run.seconds else {}
        counts = {"steps": run.steps, "tokens": run.tokens, "samples": run.documents, "hours": run.seconds / 3600}
        return counts | rates | self._mfu(run)

    def _mfu(self, tally: Tally) -> dict[str, float]:
        if self.peak is None or not tally.seconds or not tally.flops:  # not counted in reinforce
            return {}
        return {"mfu": tally.flops / (tally.seconds * self.peak * self.world.size)}

    def state(self) -> dict[str, Any]:
        """Return JSON values for a checkpoint."""
        return asdict(self.run)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on counting from what `state` returned."""
        self.run = Tally(**state)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this process had at once: allocated on its GPU, or resident in main memory without one.

    Worker processes that decode images are not counted.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""Seconds of a step by its parts."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..distributed.world import World


class Phases:
    """Sums of the seconds that the parts of a step take.

    Args:
        world: the processes.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.own: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what is done inside towards `name`; what a GPU was given before counts towards what came before."""
        started = self._now()
        try:
            yield
        finally:
            self.own[name] += self._now() - started

    def _now(self) -> float:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        return time.perf_counter()

    def slowest(self) -> dict[str, float]:
        """Return the seconds of each part in the process that took longest; every process calls this."""
        everywhere = self.world.gather(dict(self.own))
        names = sorted({name for seconds in everywhere for name in seconds})
        return {name: max(seconds.get(name, 0.0) for seconds in everywhere) for name in names}

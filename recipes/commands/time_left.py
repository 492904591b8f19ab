"""Progress of a run of several parts: which part runs, how much of the whole it is, and when all will be done."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..training.monitoring.log import duration

EVERY_S = 15.0
"""Seconds between two lines."""
KNOWN_FROM = 0.02
"""Share of the whole from which on the pace so far is worth extrapolating."""


class Whole:
    """Progress of the whole, from what each part is known to cost beside the others.

    Args:
        costs: part, in the order of the run -> its cost in any unit, such as the seconds of an earlier run.
    """

    def __init__(self, costs: Mapping[str, float]) -> None:
        self._costs = dict(costs)
        self._started = time.monotonic()
        self._done, self._part, self._fraction, self._said_at = 0.0, "", 0.0, self._started
        self._lock = threading.Lock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Say that a part begins; it counts as done behind the block."""
        self._part, self._fraction = name, 0.0
        number, share = list(self._costs).index(name) + 1, self._costs[name] / sum(self._costs.values())
        print(f"\n[{number} of {len(self._costs)}] {name}: {share:.0%} of the whole; {self.line()}", flush=True)
        try:
            yield
        finally:
            self._done, self._part, self._fraction = self._done + self._costs[name], "", 0.0

    def reach(self, fraction: float) -> None:
        """Note how far the running part is; now and then a line says so of the whole."""
        with self._lock:
            self._fraction = min(1.0, max(self._fraction, fraction))
            if time.monotonic() - self._said_at >= EVERY_S:
                self._said_at = time.monotonic()
                print(f"quickstart: {self._part}; {self.line()}", flush=True)

    def line(self) -> str:
        """Say how much is done and about how long the rest takes, by the pace so far."""
        whole = sum(self._costs.values())
        done = (self._done + self._costs.get(self._part, 0.0) * self._fraction) / whole
        text = f"{done:.0%} done"
        if done < KNOWN_FROM:
            return text
        elapsed = time.monotonic() - self._started
        return f"{text}, about {duration(elapsed * (1 - done) / done)} left"

    @contextmanager
    def watching(self, metrics: Path, steps: int) -> Iterator[None]:
        """Follow the steps that a stage, here or in other processes, writes into its metrics.jsonl."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(EVERY_S / 3):
                self.reach(last_step(metrics) / steps)

        thread = threading.Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def last_step(metrics: Path) -> int:
    """Return the last step in a file of metrics; 0 where there is none yet, or half a line."""
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if "step" in values:
            return int(values["step"])
    return 0

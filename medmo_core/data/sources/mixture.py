"""Weighted mixture of sources of samples: draw n is a pure function of the seed and n.

Nothing is stored between draws, so a run resumes at any number, and processes that draw disjoint numbers share the
work without talking to each other.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ...errors import InputError
from ..records.sample import Sample

SHORTEST_BLOCK = 64
KEPT_ORDERS = 2  # neighbouring epochs of a source that are in use at once


class Source(Protocol):
    """Samples, some of which may be made on demand.

    A source that may be renamed can also have `stream`: the name of its random numbers in a mixture. Without one, they
    have the name that the mixture gives the source.
    """

    @property
    def name(self) -> str:
        """Name for messages."""
        ...

    @property
    def root(self) -> Path | None:
        """Data root of the samples' images."""
        ...

    def __len__(self) -> int: ...

    def get(self, index: int, rng: random.Random) -> Sample:
        """Return sample `index`; what is random about it comes from `rng`."""
        ...


@dataclass(frozen=True)
class _Schedule:
    """Division of any number of draws among the sources: exactly by weight, in shuffled blocks."""

    bounds: tuple[float, ...]  # cumulative weights, 0 first and 1 last
    block: int

    def before(self, number: int) -> list[int]:
        """Return how many of the first `number` draws (whole blocks) each source has."""
        marks = [int(bound * number + 0.5) for bound in self.bounds]
        return [high - low for low, high in zip(marks, marks[1:], strict=False)]


class Mixture:
    """Weighted mixture of sources.

    Each source is gone through in epochs, every sample once per epoch in a shuffled order; over any whole number of
    blocks each source has its share of the draws to within one.

    Args:
        sources: name -> (source, weight); weights need not sum to 1.
        seed: seed of every choice.
        tones: share of the samples whose pictures are shown under a random tone curve.

    Raises:
        ValueError: no source, an empty one, or a weight that is not above 0.
    """

    def __init__(self, sources: Mapping[str, tuple[Source, float]], seed: int, tones: float = 0.0) -> None:
        if not sources:
            raise InputError("a mixture needs at least one source")
        for name, (source, weight) in sources.items():
            if not 0 < weight < float("inf"):
                raise InputError(f"mixture: weight of {name} is {weight}; expected a number above 0")
            if len(source) == 0:
                raise InputError(f"mixture: {name} holds no sample")
        self.sources, self.seed, self.tones = dict(sources), seed, tones
        self._names = list(sources)
        self._streams = [getattr(source, "stream", None) or name for name, (source, _) in sources.items()]
        weights = [weight for _, weight in sources.values()]
        bounds = [sum(weights[:i]) / sum(weights) for i in range(len(weights))]
        # A block must hold every source at least once, or the rounding could take a draw back from it.
        block = max(SHORTEST_BLOCK, int(sum(weights) / min(weights)) + 1)
        self._schedule = _Schedule((*bounds, 1.0), block)
        self._blocks: OrderedDict[int, list[tuple[int, int]]] = OrderedDict()
        self._orders: OrderedDict[tuple[int, int], list[int]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(source) for source, _ in self.sources.values())

    def draw(self, n: int) -> Sample:
        """Return sample number n of the run: a pure function of the seed and n.

        Args:
            n: number of the draw, from 0, without end.
        """
        block, offset = divmod(n, self._schedule.block)
        which, turn = self._block(block)[offset]
        source = self.sources[self._names[which]][0]
        epoch, position = divmod(turn, len(source))
        index = self._order(which, epoch)[position]
        sample = source.get(index, random.Random(f"{self.seed}/{self._streams[which]}/{n}"))
        return replace(sample, root=sample.root if sample.root is not None else source.root, tone=self._tone(n))

    def _tone(self, n: int) -> int | None:
        """Return the seed of a draw's tone curve, or None for pictures as they are."""
        rng = random.Random(f"{self.seed}/tone/{n}")
        return rng.getrandbits(48) if rng.random() < self.tones else None

    def _block(self, block: int) -> list[tuple[int, int]]:
        """Return, for each draw of a block, its source and the how-manieth draw from that source it is."""
        if block not in self._blocks:
            length = self._schedule.block
            first, last = self._schedule.before(block * length), self._schedule.before((block + 1) * length)
            turns = [list(range(low, high)) for low, high in zip(first, last, strict=True)]
            which = [i for i, mine in enumerate(turns) for _ in mine]
            shuffled = _shuffled(which, f"{self.seed}/block/{block}")
            queues = [iter(mine) for mine in turns]
            self._blocks[block] = [(i, next(queues[i])) for i in shuffled]
            while len(self._blocks) > KEPT_ORDERS:
                self._blocks.popitem(last=False)
        return self._blocks[block]

    def _order(self, which: int, epoch: int) -> list[int]:
        """Return the order of one source's samples in one epoch."""
        key = (which, epoch)
        if key not in self._orders:
            size = len(self.sources[self._names[which]][0])
            self._orders[key] = _shuffled(list(range(size)), f"{self.seed}/{self._streams[which]}/epoch/{epoch}")
            while len(self._orders) > KEPT_ORDERS * len(self._names):
                self._orders.popitem(last=False)
        return self._orders[key]


def _shuffled(values: list[int], seed: str) -> list[int]:
    # By keys rather than random.shuffle: only random() is promised to stay the same in later versions of Python.
    rng = random.Random(seed)
    keys = [rng.random() for _ in values]
    return [values[i] for i in sorted(range(len(values)), key=keys.__getitem__)]

"""Order in which lanes and programs touch memory: the check that no result depends on who comes first.

Programs of a launch run in any order, so none may touch what another writes. Lanes of one program are in step at its
barriers only: between two of them, what one lane writes no other may touch.

Assumption: blocks of one shape and element size lie over the lanes in one way, so the same position of two of them is
the same lane. Positions of different shapes count as different lanes. A block with fewer elements than there are lanes
is loaded by several lanes at once, and stored by one: what this one wrote the others do not see before a barrier. Where
they load too late what it overwrites, their copies serve nobody, unless it is a scalar, which steers all of them.
"""

import math
from collections.abc import Iterable

import numpy as np

from .checked_tensors import Access, Complaint, Place
from .findings import Kind, Site

SEVERAL = -1
"""In place of a lane: more than one."""
LANES_OF_A_WARP = 32


class Order:
    """Who touched what in one launch: for every element of its memory, which access was the last one.

    Accesses are numbered as they happen, programs one after the other; 0 is none. So an access is of an earlier program
    where its number is below the first of this program, and since the last barrier where it is not below the first one
    after that.
    """

    def __init__(self, places: Iterable[Place], num_warps: int) -> None:
        self._num_lanes = num_warps * LANES_OF_A_WARP
        self._sites: list[Site | None] = [None]
        self._program = self._barrier = 1
        self._layouts: dict[tuple[tuple[int, ...], int], int] = {}
        self._granules, count = _granules(places)
        self._writer, self._reader, self._first_reader = (np.zeros(count, np.int32) for _ in range(3))
        self._writer_lane, self._reader_lane = np.zeros(count, np.int64), np.zeros(count, np.int64)

    def begin_program(self) -> None:
        """Start the next program."""
        self._program = self._barrier = len(self._sites)

    def pass_barrier(self) -> None:
        """Let all lanes of this program wait for one another."""
        self._barrier = len(self._sites)

    def load(self, access: Access, site: Site) -> list[Complaint]:
        """Note a load, and return what is wrong with it."""
        number, at, lanes = self._number(access, site)
        num_elements = math.prod(access.block)
        writer = self._writer[at]
        faults = []
        if writer.any():
            faults += self._told(Kind.READS_PROGRAM, access, writer, (writer > 0) & (writer < self._program))
            other_lane = (self._writer_lane[at] != lanes) | (num_elements < self._num_lanes)
            faults += self._told(Kind.READS_LANE, access, writer, (writer >= self._barrier) & other_lane)
        if num_elements == 1:
            lanes = np.full_like(lanes, SEVERAL)
        others = (self._reader[at] >= self._barrier) & (self._reader_lane[at] != lanes)
        lanes = np.where(others, SEVERAL, lanes)
        self._reader_lane[at] = lanes
        twice = self._reader_lane[at] != lanes
        self._reader_lane[at[twice]] = SEVERAL
        self._reader[at] = number
        self._first_reader[at[self._first_reader[at] == 0]] = number
        return faults

    def store(self, access: Access, site: Site) -> list[Complaint]:
        """Note a store, and return what is wrong with it."""
        number, at, lanes = self._number(access, site)
        writer, reader, first_reader = self._writer[at], self._reader[at], self._first_reader[at]
        read_by, written_by = self._reader_lane[at], self._writer_lane[at]
        self._writer[at], self._writer_lane[at] = number, lanes
        twice = self._writer_lane[at] != lanes
        early = (first_reader > 0) & (first_reader < self._program)
        return [
            *self._told(Kind.TWO_PROGRAMS, access, writer, (writer > 0) & (writer < self._program)),
            *self._told(Kind.WRITES_PROGRAM, access, first_reader, early),
            *self._told(Kind.WRITES_LANE, access, reader, (reader >= self._barrier) & (read_by != lanes)),
            *self._told(Kind.TWO_LANES, access, writer, (writer >= self._barrier) & (written_by != lanes)),
            *self._told(Kind.TWO_LANES, access, np.full_like(writer, number), twice),
        ]

    def _number(self, access: Access, site: Site) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the number of a new access, the granules that it touches, and the lane that touches each."""
        self._sites.append(site)
        layout = self._layouts.setdefault((access.block, access.size), len(self._layouts))
        lanes = access.lanes + (layout << 32)
        first, granule = self._granules[access.place]
        at = first + access.offsets // granule
        if access.size > granule:
            parts = access.size // granule
            at, lanes = (at[:, None] + np.arange(parts)).reshape(-1), np.repeat(lanes, parts)
        return len(self._sites) - 1, at, lanes

    def _told(self, kind: Kind, access: Access, earlier: np.ndarray, wrong: np.ndarray) -> list[Complaint]:
        if not wrong.any():
            return []
        told = f"{access.place}: {wrong.sum()} of {len(wrong)} elements, at {self._sites[earlier[wrong][0]]}"
        return [(kind, access.place.name, told)]


def _granules(places: Iterable[Place]) -> tuple[dict[Place, tuple[int, int]], int]:
    """Cut the memory of a launch into granules: no element of any tensor is smaller than those that it lies in.

    Returns:
        The first granule of every tensor, and the bytes of each of its granules; tensors that overlap share theirs.
        Then the number of all granules.
    """
    found: dict[Place, tuple[int, int]] = {}
    count = 0
    waiting = sorted((place for place in places if place.num_bytes), key=lambda place: place.memory)
    while waiting:
        begin, end, group = waiting[0].memory, 0, []
        while waiting and (not group or waiting[0].memory < end):
            group.append(waiting.pop(0))
            end = max(end, group[-1].memory + group[-1].num_bytes)
        granule = min(place.tensor.element_size() for place in group)
        for place in group:
            found[place] = count + (place.memory - begin) // granule, granule
        count += -(-(end - begin) // granule)
    return found, count

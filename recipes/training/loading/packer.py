"""Packs of documents: first-fit-decreasing over a bounded buffer of waiting documents.

Only lengths are needed, so a plan can be made before anything is decoded, and any process makes the same one.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import Any


class Packer:
    """Packs of at most `budget` tokens, filled from the documents that wait.

    A pack begins with the document that has waited longest, so none waits for ever, and takes the longest of the others
    that still fits, again and again: first-fit-decreasing, one pack at a time. What is waiting is small, so the state
    is too, and a packer restored from it goes on as if it had never stopped.

    Args:
        budget: largest number of tokens in a pack.
        buffer_size: documents that wait before a pack is formed; more of them fill packs better. Where so many make
            less than two packs, more wait.

    Attributes:
        num_packs: packs formed.
        num_tokens: tokens in those packs.
    """

    def __init__(self, budget: int, buffer_size: int) -> None:
        if budget < 1 or buffer_size < 1:
            raise ValueError(f"a packer needs a budget and a buffer of 1 or more, got {budget} and {buffer_size}")
        self.budget, self.buffer_size = budget, buffer_size
        self.num_packs = self.num_tokens = 0
        self._tokens_waiting = 0
        self._waiting: dict[int, int] = {}  # number -> length, in order of arrival
        self._by_length: list[tuple[int, int]] = []  # (length, -number): of equal lengths the oldest comes last

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether enough documents wait to form a pack."""
        return len(self) >= self.buffer_size and self._tokens_waiting >= 2 * self.budget

    @property
    def efficiency(self) -> float:
        """Share of the budget of all packs formed that holds tokens; 1 before the first."""
        return self.num_tokens / (self.num_packs * self.budget) if self.num_packs else 1.0

    def add(self, number: int, length: int) -> None:
        """Let a document wait.

        Args:
            number: names it.
            length: its tokens.

        Raises:
            ValueError: longer than the budget, empty, or waiting already.
        """
        if not 0 < length <= self.budget:
            raise ValueError(f"document {number} has {length} tokens; a pack holds 1 to {self.budget}")
        if number in self._waiting:
            raise ValueError(f"document {number} is waiting already")
        self._waiting[number] = length
        self._tokens_waiting += length
        insort(self._by_length, (length, -number))

    def take(self) -> list[int]:
        """Form the next pack and return the numbers of its documents; empty when none waits."""
        pack: list[int] = []
        room = self.budget
        while self._waiting:
            if not pack:
                number = next(iter(self._waiting))
                index = bisect_right(self._by_length, (self._waiting[number], -number)) - 1
            else:
                index = bisect_right(self._by_length, (room, 1)) - 1  # numbers count down from 0, so 1 is past them
            if index < 0:
                break
            length, negative = self._by_length.pop(index)
            del self._waiting[-negative]
            pack.append(-negative)
            room -= length
        if pack:
            self.num_packs += 1
            self.num_tokens += self.budget - room
            self._tokens_waiting -= self.budget - room
        return pack

    def state(self) -> dict[str, Any]:
        """Return JSON values from which `restore` goes on."""
        waiting = [[number, length] for number, length in self._waiting.items()]
        return {"waiting": waiting, "num_packs": self.num_packs, "num_tokens": self.num_tokens}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            ValueError: a waiting document is longer than the budget, which has become smaller.
        """
        self._waiting, self._by_length, self._tokens_waiting = {}, [], 0
        for number, length in state["waiting"]:
            self.add(int(number), int(length))
        self.num_packs, self.num_tokens = int(state["num_packs"]), int(state["num_tokens"])

"""Plan of the steps: the draws of each, and who packs them; a pure function of the run, the same on every process.

By documents, step s takes the next docs_per_step draws and each process packs its share micro_batch at a time. By
tokens, packs are filled first-fit-decreasing from a buffer of draws whose lengths are known without decoding; pack i of
a step belongs to process i modulo their number. Neither depends on how many processes there are, so a run can go on
with another number of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...settings.run_config import ConfigError
from ..distributed.world import World
from .packer import Packer
from .skipped import BadData, SkippedSample

GIVE_UP = 256  # draws in a row that cannot be used
ASKED_AT_ONCE = 32  # lengths

Lengths = Callable[[Sequence[int]], Sequence[int | SkippedSample]]
"""Numbers of draws -> their lengths, or why they cannot be used."""


@dataclass(frozen=True)
class Step:
    """This process's part of a step.

    Attributes:
        packs: draws of each batch; one may be empty where all processes make as many.
        drawn: number of draws assigned to this process.
        faults: draws among these that are left out before anything is decoded.
        state: JSON values of the plan after this step.
    """

    packs: list[list[int]]
    drawn: int
    faults: list[SkippedSample]
    state: dict[str, Any]


class Plan(Protocol):
    """Division of draws into steps."""

    def take(self, step: int) -> Step:
        """Return this process's part of step `step` (0-based)."""
        ...

    def state(self) -> dict[str, Any]:
        """Return JSON values from which `restore` goes on; the same on all processes."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        ...


class DocumentPlan:
    """Steps of a fixed number of draws; any step can be asked for.

    Args:
        docs_per_step: draws of one step over all processes.
        micro_batch: documents per batch.
        world: processes over which draws are divided.
        equal: whether every process gets equally many batches.
    """

    def __init__(self, docs_per_step: int, micro_batch: int, *, world: World, equal: bool = False) -> None:
        self.docs_per_step, self.micro_batch, self.world, self.equal = docs_per_step, micro_batch, world, equal
        self._step = self._draw = 0  # a step, and its first draw

    def take(self, step: int) -> Step:
        """Return this process's part of step `step`."""
        first = self._draw + (step - self._step) * self.docs_per_step
        numbers = [first + i for i in self.world.share(self.docs_per_step)]
        count = -(-self.docs_per_step // self.world.size) if self.equal else len(numbers)  # the largest share
        packs = [numbers[start : start + self.micro_batch] for start in range(0, count, self.micro_batch)]
        state = {"step": step + 1, "next_draw": first + self.docs_per_step}
        return Step(packs, len(numbers), [], state)

    def state(self) -> dict[str, Any]:
        """Return JSON values from which `restore` goes on."""
        return {"step": self._step, "next_draw": self._draw}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, with whatever docs_per_step is now.

        Raises:
            ConfigError: the state is that of packing by tokens.
        """
        if "packer" in state:
            raise ConfigError("train.tokens_per_batch: the run packed by tokens so far; it cannot go on by documents")
        self._step, self._draw = int(state["step"]), int(state["next_draw"])


@dataclass(frozen=True)
class TokenBudget:
    """Numbers of packing by tokens.

    Attributes:
        tokens_per_batch: tokens of a batch, at most.
        batches_per_step: batches of a step over all processes; None: as many as `docs_per_step` draws need, which are
            then packed among themselves.
        pack_buffer: draws that wait to be packed.
    """

    tokens_per_batch: int
    batches_per_step: int | None
    pack_buffer: int


class TokenPlan:
    """Steps of a fixed number of packs; they must be asked for in order.

    Args:
        lengths: function that returns the lengths of draws.
        budget: numbers of the packing.
        docs_per_step: draws of one step where the budget leaves the number of batches open.
        world: processes over which packs are divided.
        equal: whether every process gets equally many batches.
    """

    def __init__(
        self, lengths: Lengths, budget: TokenBudget, docs_per_step: int, *, world: World, equal: bool = False
    ) -> None:
        self.lengths, self.budget, self.docs_per_step = lengths, budget, docs_per_step
        self.world, self.equal = world, equal
        self._packer = Packer(budget.tokens_per_batch, budget.pack_buffer)
        self._step = self._draw = 0
        self._known: dict[
            int, int | SkippedSample
        ] = {}  # asked for ahead; not part of the state, for it can be asked again

    def take(self, step: int) -> Step:
        """Return this process's part of step `step`.

        Raises:
            BadData: many draws in a row cannot be used.
            ValueError: it is not the turn of this step.
        """
        if step != self._step:
            raise ValueError(f"packing by tokens goes in order: the next step is {self._step}, not {step}; restore it")
        faults: list[SkippedSample] = []
        packs: list[list[int]] = []
        if self.budget.batches_per_step is None:
            for _ in range(self.docs_per_step):
                self._draw_one(faults)
            while len(self._packer):
                packs.append(self._packer.take())
        else:
            for _ in range(self.budget.batches_per_step):
                self._fill(faults)
                packs.append(self._packer.take())
        self._step += 1
        return self._share(packs, faults)

    def _fill(self, faults: list[SkippedSample]) -> None:
        in_a_row = 0
        while not self._packer.is_full:
            in_a_row = 0 if self._draw_one(faults) else in_a_row + 1
            if in_a_row == GIVE_UP:
                reasons = "; ".join(str(fault) for fault in faults[-3:])
                raise BadData(f"{GIVE_UP} samples in a row could not be used, the last of them: {reasons}")

    def _draw_one(self, faults: list[SkippedSample]) -> bool:
        """Let the next draw wait in the packer; returns whether it could."""
        number = self._draw
        if number not in self._known:
            asked = range(number, number + ASKED_AT_ONCE)
            self._known = dict(zip(asked, self.lengths(asked), strict=True))
        self._draw += 1
        length = self._known.pop(number)
        if isinstance(length, SkippedSample):
            faults.append(length)
            return False
        self._packer.add(number, length)
        return True

    def _share(self, packs: list[list[int]], faults: list[SkippedSample]) -> Step:
        """Return what of a step is this process's."""
        own = [packs[i] for i in self.world.share(len(packs))]
        most = -(-len(packs) // self.world.size)
        own += [[]] * (most - len(own) if self.equal else 0)
        mine = [fault for fault in faults if fault.draw % self.world.size == self.world.rank]
        return Step(own, sum(len(pack) for pack in own) + len(mine), mine, self.state())

    def state(self) -> dict[str, Any]:
        """Return JSON values from which `restore` goes on."""
        return {"step": self._step, "next_draw": self._draw, "packer": self._packer.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            ConfigError: the state is that of packing by documents, or a waiting document is over the budget.
        """
        if "packer" not in state:
            raise ConfigError("train.tokens_per_batch: the run packed by documents so far; it cannot go on by tokens")
        try:
            self._packer.restore(state["packer"])
        except ValueError as error:
            raise ConfigError(f"train.tokens_per_batch: {error}, as the run has already taken it up") from error
        self._step, self._draw, self._known = int(state["step"]), int(state["next_draw"]), {}

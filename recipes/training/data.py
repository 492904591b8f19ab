"""What feeds a run: a mixture of sources, drawn by number, encoded, packed, and every sample left out accounted for.

Draw n of a run is a pure function of its seed and n; step s takes draws s*B to s*B+B-1 and the processes divide them.
So the global batch does not depend on the number of processes, and resuming needs nothing but the step.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medmo_core.batch import IGNORE_INDEX, Batch
from medmo_core.data.packing import pack
from medmo_core.data.process import Item, Processor, TooLong
from medmo_core.data.record import Sample

from .distributed import World

SKIPPED_FILE = "skipped.jsonl"
JUDGE_FROM = 64  # draws before the share of bad samples can stop a run
SEARCH_FILLER = 256  # draws looked through for a document with an image


class BadData(ValueError):
    """Too much of the data cannot be used; the message shows the first reasons."""


@dataclass(frozen=True)
class Fault:
    """A sample that was drawn and left out."""

    draw: int
    sample_id: str
    reason: str
    kind: str


class SkippedSamples:
    """Count what was left out, write each to skipped.jsonl, and stop a run that leaves out too much.

    Args:
        out_dir: the run's folder; None = only count.
        rank: processes other than the first write skipped-RANK.jsonl.
        max_ratio: largest share of the draws of this process that may be left out.
    """

    def __init__(self, out_dir: Path | None, *, rank: int = 0, max_ratio: float = 1.0) -> None:
        name = SKIPPED_FILE if rank == 0 else SKIPPED_FILE.replace(".", f"-{rank}.")
        self.path = None if out_dir is None else out_dir / name
        self.max_ratio = max_ratio
        self.drawn = 0
        self.kinds: Counter[str] = Counter()
        self.examples: list[Fault] = []

    @property
    def total(self) -> int:
        """Samples left out so far."""
        return sum(self.kinds.values())

    def record(self, drawn: int, faults: Sequence[Fault]) -> None:
        """Add the outcome of `drawn` draws.

        Raises:
            BadData: more than `max_ratio` of at least 64 draws were left out.
        """
        self.drawn += drawn
        if faults and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                for fault in faults:
                    line = {"draw": fault.draw, "id": fault.sample_id, "kind": fault.kind, "reason": fault.reason}
                    file.write(json.dumps(line) + "\n")
        for fault in faults:
            self.kinds[fault.kind] += 1
            if len(self.examples) < 5:
                self.examples.append(fault)
        if self.drawn >= JUDGE_FROM and self.total > self.max_ratio * self.drawn:
            raise BadData(
                f"{self.total} of {self.drawn} samples could not be used (data.max_bad_ratio={self.max_ratio:g}); "
                f"first: {'; '.join(f'{f.sample_id}: {f.reason}' for f in self.examples[:3])}"
            )

    def state(self) -> dict[str, object]:
        """Return JSON values for a checkpoint."""
        return {"drawn": self.drawn, "kinds": dict(self.kinds)}

    def restore(self, state: dict[str, object]) -> None:
        """Continue counting from what `state` returned."""
        self.drawn, self.kinds = int(str(state["drawn"])), Counter(state["kinds"])  # type: ignore[arg-type]

    def summary(self) -> str:
        """Say in one line what was left out."""
        if not self.total:
            return f"no sample was left out of {self.drawn} drawn"
        parts = ", ".join(f"{number} {kind}" for kind, number in self.kinds.most_common())
        where = f"; each with its reason in {self.path}" if self.path is not None else ""
        return f"{self.total} of {self.drawn} samples drawn were left out: {parts}{where}"


class Loader:
    """Make the packed batches of a step, one step ahead of the model.

    Args:
        draw: sample number n of the run, for any n, in any order.
        processor: turns samples into tokens and patches.
        world: draws are divided over its processes.
        docs_per_step: draws of one step over all processes.
        micro_batch: documents per batch.
        skipped: where samples that cannot be used are counted.
        equal: give every process the same number of batches and an image in each, as sharded models need (their
            processes gather weights block by block, so all must run the same blocks).
        independent_turns: every turn of a sample is a document of its own.
    """

    def __init__(
        self,
        draw: Callable[[int], Sample],
        processor: Processor,
        *,
        world: World,
        docs_per_step: int,
        micro_batch: int,
        skipped: SkippedSamples,
        equal: bool = False,
        independent_turns: bool = False,
    ) -> None:
        self.draw, self.processor, self.world, self.skipped = draw, processor, world, skipped
        self.docs_per_step, self.micro_batch, self.independent_turns = docs_per_step, micro_batch, independent_turns
        self._filler = self._find_filler() if equal else None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._ahead: tuple[int, Future[tuple[list[Batch], list[Fault]]]] | None = None

    def step(self, step: int, *, look_ahead: bool = True) -> list[Batch]:
        """Return this process's batches of step `step` (0-based); the list may be empty.

        Args:
            step: any step; asking in order is fastest, since the next one is made meanwhile.
            look_ahead: start on the next step.

        Raises:
            BadData: too many samples could not be used.
        """
        if self._ahead is not None and self._ahead[0] == step:
            batches, faults = self._ahead[1].result()
        else:
            batches, faults = self._worker.submit(self._make, step).result()  # sources serve one thread
        self._ahead = (step + 1, self._worker.submit(self._make, step + 1)) if look_ahead else None
        self.skipped.record(len(self.world.share(self.docs_per_step)), faults)
        return batches

    def close(self) -> None:
        """Stop working ahead."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def encode(self, number: int) -> list[Item] | Fault:
        """Return the documents of draw `number` ready to pack, or why it cannot be used."""
        sample_id = f"draw {number}"
        try:
            sample = self.draw(number)
            sample_id = sample.id
            return self.processor.encode_turns(sample) if self.independent_turns else [self.processor.encode(sample)]
        except (ValueError, OSError) as error:
            kind = "too long" if isinstance(error, TooLong) else "unreadable"
            return Fault(draw=number, sample_id=sample_id, reason=str(error), kind=kind)

    def _make(self, step: int) -> tuple[list[Batch], list[Fault]]:
        numbers = [step * self.docs_per_step + i for i in self.world.share(self.docs_per_step)]
        count = len(numbers)
        if self._filler is not None:
            count = -(-self.docs_per_step // self.world.size)  # of the process with the most
        batches: list[Batch] = []
        faults: list[Fault] = []
        for start in range(0, count, self.micro_batch):
            outcomes = [self.encode(number) for number in numbers[start : start + self.micro_batch]]
            faults += [o for o in outcomes if isinstance(o, Fault)]
            items = [item for o in outcomes if not isinstance(o, Fault) for item in o]
            if self._filler is not None and not any(item.patches for item in items):
                items.append(self._filler)
            if items:
                batches.append(pack(items))
        return batches, faults

    def _find_filler(self) -> Item:
        """Return a document that teaches nothing but passes through every block, with an image if the data has any."""
        found: Item | None = None
        for number in range(SEARCH_FILLER):
            items = self.encode(number)
            if not isinstance(items, Fault) and (found is None or items[0].patches):
                found = items[0]
                if found.patches:
                    break
        if found is None:
            raise BadData(f"none of the first {SEARCH_FILLER} samples could be used: {self.encode(0)}")
        assert found.labels is not None
        return replace(found, labels=np.full_like(found.labels, IGNORE_INDEX))

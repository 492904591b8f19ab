"""Samples left out of a run: counted, written down with their reasons, listed at the end, never silently."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medmo_core.durable import mend_lines
from medmo_core.errors import UserError

SKIPPED_FILE = "skipped.jsonl"
JUDGE_FROM = 64  # draws before the share of bad samples can stop a run
LISTED = 20  # samples that the summary names
TOO_LONG, UNREADABLE = "too long", "unreadable"


class BadData(UserError, ValueError):
    """Data that cannot be used; the message shows the first reasons."""


@dataclass(frozen=True)
class SkippedSample:
    """A sample that was drawn and left out.

    Attributes:
        draw: number of the draw in the run.
        sample_id: name of the sample.
        reason: cause, in words.
        kind: `TOO_LONG` or `UNREADABLE`.
        files: images of the sample, as the record names them.
    """

    draw: int
    sample_id: str
    reason: str
    kind: str
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        files = ", ".join(name for name in self.files if name not in self.reason)
        reason = self.reason.removeprefix(f"{self.sample_id}: ")
        return f"{self.sample_id} ({files}): {reason}" if files else f"{self.sample_id}: {reason}"


class SkippedSamples:
    """Counter of samples left out, each written to skipped.jsonl; it stops a run that leaves out what it should not.

    Args:
        out_dir: the run's folder; None = only count.
        rank: number of this process; others than the first write skipped-RANK.jsonl.
        max_ratio: largest share of the draws of this process that may be left out.
        stop: whether the first sample that cannot be read stops the run; one that is too long does not.
    """

    def __init__(self, out_dir: Path | None, *, rank: int = 0, max_ratio: float = 1.0, stop: bool = False) -> None:
        name = SKIPPED_FILE if rank == 0 else SKIPPED_FILE.replace(".", f"-{rank}.")
        self.path = None if out_dir is None else out_dir / name
        self.max_ratio, self.stop = max_ratio, stop
        self.drawn = 0
        self.kinds: Counter[str] = Counter()
        self.examples: list[SkippedSample] = []

    @property
    def total(self) -> int:
        """Samples left out so far."""
        return sum(self.kinds.values())

    def add(self, drawn: int, faults: Sequence[SkippedSample]) -> None:
        """Add the outcome of `drawn` draws.

        Raises:
            BadData: more than `max_ratio` of at least 64 draws were left out, or one was unreadable and `stop` is on.
        """
        self.drawn += drawn
        if faults and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            mend_lines(self.path)  # of a run that was killed while it wrote
            with self.path.open("a", encoding="utf-8") as file:
                for fault in faults:
                    line = {"draw": fault.draw, "id": fault.sample_id, "kind": fault.kind, "reason": fault.reason}
                    file.write(json.dumps({**line, "files": fault.files}) + "\n")
        self.kinds.update(fault.kind for fault in faults)
        self.examples += faults[: LISTED - len(self.examples)]
        unreadable = [fault for fault in faults if fault.kind != TOO_LONG]
        if self.stop and unreadable:
            raise BadData(f"sample {unreadable[0]} (draw {unreadable[0].draw}; data.on_bad_sample=skip would go on)")
        if self.drawn >= JUDGE_FROM and self.total > self.max_ratio * self.drawn:
            raise BadData(
                f"{self.total} of {self.drawn} samples could not be used (data.max_bad_ratio={self.max_ratio:g}); "
                f"first: {'; '.join(str(fault) for fault in self.examples[:3])}"
            )

    def state(self) -> dict[str, Any]:
        """Return JSON values for a checkpoint."""
        return {
            "drawn": self.drawn, "kinds": dict(self.kinds), "examples": [asdict(fault) for fault in self.examples],
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue counting from what `state` returned."""
        self.drawn, self.kinds = int(state["drawn"]), Counter(state["kinds"])
        self.examples = [SkippedSample(**{**fault, "files": tuple(fault["files"])}) for fault in state["examples"]]

    def summary(self) -> str:
        """Say what was left out: how many in the first line, then the first of them with their reasons."""
        if not self.total:
            return f"no sample was left out of {self.drawn} drawn"
        parts = ", ".join(f"{number} {kind}" for kind, number in self.kinds.most_common())
        where = f"; each with its reason in {self.path}" if self.path is not None else ""
        lines = [f"{self.total} of {self.drawn} samples drawn were left out: {parts}{where}"]
        lines += [f"  {fault}" for fault in self.examples]
        if self.total > len(self.examples):
            lines.append(f"  and {self.total - len(self.examples)} more")
        return "\n".join(lines)

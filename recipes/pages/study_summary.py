"""Spread of the quickstart over repeated runs: how often each verdict held, and from where to where each figure went.

`python -m benchmarks.studies.quickstart_runs --table` writes the file, which the package carries; without it, or where
the recipe is another since, nothing is said.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SUMMARY = Path(__file__).with_name("quickstart_study.json")


@dataclass(frozen=True)
class StudySummary:
    """Results of one recipe over the runs of a study; the fields of its file.

    Attributes:
        recipe: digest of the recipe that every run had.
        num_runs: number of runs.
        held: claim of a verdict -> number of runs in which it held.
        ranges: stage -> metric -> lowest and highest value over the runs.
    """

    recipe: str
    num_runs: int
    held: Mapping[str, int]
    ranges: Mapping[str, Mapping[str, tuple[float, float]]]

    def told(self, claim: str) -> str:
        """Say how often a verdict held; nothing of one that the study does not have."""
        if claim not in self.held:
            return ""
        return f"held in {self.held[claim]} of {self.num_runs} runs of the study"

    def range_of(self, stage: str, metric: str) -> str:
        """Say from where to where a figure went; nothing of one that the study does not have."""
        ends = self.ranges.get(stage, {}).get(metric)
        return "" if ends is None else f"study: {ends[0]:.3f} to {ends[1]:.3f}"


def summary_for(recipe: str, path: Path = SUMMARY) -> StudySummary | None:
    """Return the summary of the study of a recipe; None where there is none, or one of another recipe."""
    if not path.exists():
        return None
    summary = StudySummary(**json.loads(path.read_text(encoding="utf-8")))
    return summary if summary.recipe == recipe else None

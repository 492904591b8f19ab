"""Spread of the study's figures over its runs: mean and ends, how often verdicts held, and which run is the median."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

from medmo_core.errors import InputError
from medmo_recipes.pages.study_summary import StudySummary

from .records import RunRecord, StudyRecord

MEDIAN_BY = ("instruct", "grounding_iou")
"""Stage and metric by which the runs are ordered."""


class Spread(NamedTuple):
    """Mean of a figure over the runs that have it, and its ends."""

    mean: float
    low: float
    high: float


def spread(runs: Sequence[RunRecord], figure: Callable[[RunRecord], float | None]) -> Spread | None:
    """Return the spread of a figure; None where no run has it."""
    values = [value for value in map(figure, runs) if value is not None]
    return Spread(fmean(values), min(values), max(values)) if values else None


def score_of(run: RunRecord, stage: str, metric: str, end: str = "value") -> float | None:
    """Return a field of a score; None where the run has no such score, as of boxes where none was said."""
    return run.stages[stage].get(metric, {}).get(end)


def median_run(runs: Sequence[RunRecord]) -> RunRecord:
    """Return the run in the middle by IoU after instruct; of two middle ones the lower."""
    ordered = sorted(runs, key=lambda run: (run.stages[MEDIAN_BY[0]][MEDIAN_BY[1]]["value"], run.name))
    return ordered[(len(ordered) - 1) // 2]


def verdict_counts(runs: Sequence[RunRecord]) -> dict[str, int]:
    """Return claim -> number of runs in which it held.

    Raises:
        InputError: the runs do not judge the same claims.
    """
    claims = list(runs[0].verdicts)
    for run in runs:
        if set(run.verdicts) != set(claims):
            differing = sorted(set(run.verdicts) ^ set(claims))
            raise InputError(f"{run.name} and {runs[0].name} judge other claims: {differing}; run the study anew")
    return {claim: sum(run.verdicts[claim] for run in runs) for claim in claims}


def refuse_gaps(study: StudyRecord) -> None:
    """Look whether a study is whole, so that no run is left out for what it showed.

    Raises:
        InputError: it has no run, or a seed lacks a layout that other seeds have.
    """
    if not study.runs:
        raise InputError("the study has no finished run yet")
    for isa in dict.fromkeys(run.isa for run in study.runs):
        runs = [run for run in study.runs if run.isa == isa]
        there = {(run.seed, run.layout) for run in runs}
        wanted = set(product({run.seed for run in runs}, {run.layout for run in runs}))
        if missing := sorted(wanted - there):
            names = ", ".join(f"seed {seed} in {layout}" for seed, layout in missing)
            raise InputError(f"the study lacks runs ({isa}): {names}; its --out command makes them")


def summarise(study: StudyRecord) -> StudySummary:
    """Return what the quickstart's report says of the study: counts of verdicts, and ends of every score."""
    ranges: dict[str, dict[str, tuple[float, float]]] = {}
    for stage in study.runs[0].stages:
        metrics = dict.fromkeys(metric for run in study.runs for metric in run.stages[stage])
        for metric in metrics:
            found = spread(study.runs, lambda run, stage=stage, metric=metric: score_of(run, stage, metric))
            if found is not None:
                ranges.setdefault(stage, {})[metric] = (found.low, found.high)
    return StudySummary(study.recipe, len(study.runs), verdict_counts(study.runs), ranges)


def summary_json(study: StudyRecord) -> dict[str, Any]:
    """Return the fields of the summary's file."""
    return asdict(summarise(study))

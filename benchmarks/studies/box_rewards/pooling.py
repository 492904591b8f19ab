"""Figures of a round: means and intervals over seeds and images, of all questions and of each kind."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from medmo_core.metrics import mean_interval, paired_interval

from .asking import metrics_of
from .plan import START, StudyPlan

Measurements = Mapping[str, Mapping[str, Any]]
"""Name of a run (`START`, or "arm/seed") -> what `measure` returned of it."""
KIND_METRICS = ("f1", "duplicates", "count_error")
"""Metrics of which a round of targets shows every kind."""


def pool_seeds(plan: StudyPlan, measured: Measurements) -> dict[str, Any]:
    """Reduce the answers to means and intervals: over seeds per question first, then over images."""
    start = measured[START]
    metrics = metrics_of(plan.questions)
    answers = {arm: {key: over_seeds(plan, measured, arm, key) for key in metrics} for arm in (START, *plan.arms)}
    images = {key: start[f"{key} images"] for key in metrics}
    arms: dict[str, Any] = {}
    for arm, values in answers.items():
        arms[arm] = {key: described(values[key], images[key]) for key in metrics}
        if arm != START:
            for key, row in arms[arm].items():
                row["seeds"] = [statistics.fmean(measured[f"{arm}/{seed}"][key]) for seed in plan.seeds]
        if "sampled" in start:
            runs = [measured[f"{arm}/{seed}"]["sampled"]["1"] for seed in plan.seeds if arm != START]
            arms[arm]["sampled"] = {"1": statistics.fmean(runs)} if runs else start["sampled"]
    ours, *others = plan.arms
    against = {
        other: {key: compared(answers[ours][key], answers[other][key], images[key]) for key in metrics}
        for other in (START, *others)
    }
    counts = {key: {"questions": len(start[key]), "images": len(set(images[key]))} for key in metrics}
    where = {"machine": platform.machine(), "torch": torch.__version__, "device": "cpu"}
    figures = {"counts": counts, "arms": arms, "against": against, "agreement": start["agreement"]}
    if "judged" in start:
        figures |= {"judged": start["judged"], "ranking": start["ranking"]}
        figures["kinds"] = by_kind(plan, start, answers)
        figures["answers"] = stored_answers(start, answers)
    return {"plan": plan.to_json(), "where": where, **figures}


def over_seeds(plan: StudyPlan, measured: Measurements, arm: str, key: str) -> list[float]:
    """Return the mean over the seeds of each answer of an arm; of `START`, the values as they are."""
    if arm == START:
        return list(measured[START][key])
    runs = [measured[f"{arm}/{seed}"][key] for seed in plan.seeds]
    return [statistics.fmean(values) for values in zip(*runs, strict=True)]


def described(values: Sequence[float], images: Sequence[int]) -> dict[str, Any]:
    """Return mean and interval of the answers of an arm."""
    low, high = mean_interval(values, images) or (None, None)
    return {"mean": statistics.fmean(values), "low": low, "high": high}


def compared(own: Sequence[float], other: Sequence[float], images: Sequence[int]) -> dict[str, Any]:
    """Return the mean difference of two arms' answers to the same questions, and its interval."""
    low, high = paired_interval(own, other, images) or (None, None)
    return {"difference": statistics.fmean(own) - statistics.fmean(other), "low": low, "high": high}


def by_kind(
    plan: StudyPlan, start: Mapping[str, Any], answers: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, Any]:
    """Return kind -> questions, means of every arm and differences of the first arm to the others."""
    ours, *others = plan.arms
    rows: dict[str, Any] = {}
    for kind in dict.fromkeys(start[f"{KIND_METRICS[0]} kinds"]):
        rows[kind] = {"questions": {}, "arms": {arm: {} for arm in answers}, "against": {arm: {} for arm in others}}
        for key in KIND_METRICS:
            places = [i for i, name in enumerate(start[f"{key} kinds"]) if name == kind]
            picked = {arm: [values[key][i] for i in places] for arm, values in answers.items()}
            images = [start[f"{key} images"][i] for i in places]
            rows[kind]["questions"][key] = len(places)
            for arm, values in picked.items():
                rows[kind]["arms"][arm][key] = statistics.fmean(values)
            for other in others:
                rows[kind]["against"][other][key] = compared(picked[ours], picked[other], images)
    return rows


def stored_answers(
    start: Mapping[str, Any], answers: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, dict[str, Any]]:
    """Return what intervals are computed from: of each metric the image of every question, and every arm's values."""
    return {
        key: {
            "images": list(start[f"{key} images"]),
            "arms": {arm: [round(value, 4) for value in values[key]] for arm, values in answers.items()},
        }
        for key in next(iter(answers.values()))
    }

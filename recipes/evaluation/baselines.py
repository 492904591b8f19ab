"""Answers that need no look at the image: what a model must beat to show that it looks.

All are fitted on training samples only: the commonest answer to each kind of question, one constant report, and for
each label the one box that fits it best. What training has not seen gets what fits all that it has.

Shapes: N boxes, xyxy as shares of the image.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from medmo_core.boxes import AnyBoxes, Boxes, ImageBoxes, by_image
from medmo_core.data.records.sample import Answer, Sample, message_text
from medmo_core.datasets.embedded.tasks import eval_samples
from medmo_core.datasets.embedded.texts import listed

ANY_LABEL = "*"
GRID = 101  # positions a corner may take
NUM_STARTS = 4
MAX_ROWS = 500  # boxes of all labels together that one box is fitted to
FIT_SAMPLES = {"vqa": 2000, "grounding": 3000, "report": 400}
FIT_SEED = 20_000


@dataclass(frozen=True)
class FittedBaselines:
    """Constant answers per kind of question and constant boxes per label.

    Attributes:
        answers: kind of question, and the wider kinds (`wider_kinds`) -> commonest answer.
        constant_boxes: label, or `ANY_LABEL` -> x1, y1, x2, y2 as shares of the image.
        by: what a kind of question is, see `fit_baselines`.
    """

    answers: dict[str, str]
    constant_boxes: dict[str, tuple[float, float, float, float]]
    by: str = "form"

    def answer(self, sample: Sample) -> str | None:
        """Return the commonest training answer to this kind of question; None where its task never came up.

        A kind of question that training has not seen gets the commonest answer of its type of answer, then of its task:
        else a model that always says the same would gain over a baseline that is silent.
        """
        kinds = (kind_of(sample, self.by), *wider_kinds(sample))
        return next((self.answers[kind] for kind in kinds if kind in self.answers), None)

    def boxes(self, sample: Sample) -> AnyBoxes | None:
        """Return the constant box of each label asked for, in pixels of the image; None where no box is known.

        A label that training has not seen gets the box that fits all of them best. Among several images it knows which
        one each label is to be found in.
        """
        truth = sample.truth_boxes()
        if truth is None:
            return None
        parts = tuple(self._constants(boxes) for boxes in by_image(truth))
        if not any(map(len, parts)):
            return None
        return replace(truth, per_image=parts) if isinstance(truth, ImageBoxes) else parts[0]

    def _constants(self, truth: Boxes) -> Boxes:
        labels = list(dict.fromkeys(truth.labels)) if self.constant_boxes else []
        chosen = [self.constant_boxes.get(label, self.constant_boxes[ANY_LABEL]) for label in labels]
        rows = torch.tensor(chosen, dtype=torch.float64).reshape(-1, 4)
        return Boxes(rows, "unit", truth.size, tuple(labels)).pixel()


def kind_of(sample: Sample, by: str = "form") -> str:
    """Return the kind of question a sample asks.

    Args:
        sample: any sample.
        by: `form` (the task and, where the record says so, its form) or `question` (its words).
    """
    form = sample.provenance.get("template") if isinstance(sample.provenance, dict) else None
    if by == "form" and form is not None:
        return f"{sample.task}/{form}"
    # The words alone: a box that a question gives differs from image to image and would make every question a kind.
    words = [message_text(message) for message in sample.messages if message["role"] == "user"]
    return f"{sample.task}/{words[-1] if words else ''}"


def wider_kinds(sample: Sample) -> tuple[str, ...]:
    """Return the kinds that stand for a question which training has not seen: its type of answer, then its task."""
    answer = sample.answer
    return (*((f"{sample.task} of type {answer.type}",) if answer is not None else ()), f"any {sample.task}")


def fit_baselines(samples: Iterable[Sample], *, by: str = "form") -> FittedBaselines:
    """Fit constant answers on training samples.

    Args:
        samples: samples with their answers.
        by: `form` or `question`: what shares one constant answer. The second is the stronger baseline.
    """
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    reports: dict[str, list[Sample]] = defaultdict(list)
    boxes: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for sample in samples:
        truth = sample.truth_boxes() if sample.task == "grounding" else None
        if truth is not None:
            for part in by_image(truth):
                for label, row in zip(part.labels, part.to("unit").xyxy.tolist(), strict=True):
                    boxes[label].append(tuple(row))
                    boxes[ANY_LABEL].append(tuple(row))
        elif sample.task == "report" and sample.facts:
            for kind in (kind_of(sample, by), *wider_kinds(sample)):
                reports[kind].append(sample)
        elif sample.answer is not None and sample.answer.value is not None:
            votes[kind_of(sample, by)][sample.answer.value] += 1
            for kind in wider_kinds(sample):
                votes[kind][_letter(sample.answer) or sample.answer.value] += 1
    # Of equally common answers the alphabet decides, so that the order of the samples does not.
    answers = {kind: min(counts, key=lambda a: (-counts[a], a)) for kind, counts in votes.items()}
    answers |= {kind: constant_report(members) for kind, members in reports.items()}
    every = boxes.get(ANY_LABEL, [])
    boxes[ANY_LABEL] = every[:: max(1, len(every) // MAX_ROWS)]  # time and memory grow with the square
    best = {label: best_constant_box(np.array(rows)) for label, rows in sorted(boxes.items()) if rows}
    return FittedBaselines(answers, best, by)


def _letter(answer: Answer) -> str:
    """Return the letter of a right choice, which questions with different choices share; empty where there is none."""
    choices = list(answer.choices or ())
    return chr(ord("A") + choices.index(answer.value)) if answer.type == "choice" and answer.value in choices else ""


def constant_report(samples: Sequence[Sample]) -> str:
    """Return the report that states, of each finding known in at least half of the samples, its commoner status."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        for fact in sample.facts:
            counts[fact.finding][fact.status] += 1
    known = {finding: c for finding, c in counts.items() if 2 * c.total() >= len(samples)}
    present = tuple(f for f, c in known.items() if c["present"] > c["absent"])
    absent = tuple(f for f, c in known.items() if c["present"] <= c["absent"])
    sentences = [f"{listed(present)} visible." if present else "", f"No {listed(absent, 'or')}." if absent else ""]
    return " ".join(sentence for sentence in sentences if sentence)


def best_constant_box(boxes: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return the box with the largest mean IoU with `boxes`, found by coordinate search from several starts.

    Shapes: (N, 4) -> 4 numbers, shares of the image.
    """
    median, mean = np.median(boxes, 0), boxes.mean(0)
    spread = np.linspace(0, len(boxes) - 1, min(len(boxes), NUM_STARTS)).round().astype(int)
    starts = [median, mean, *boxes[np.argsort(mean_iou(boxes, boxes), kind="stable")[spread]]]
    best, best_score = median, -1.0
    for start in starts:
        box = _climb(start.copy(), boxes)
        score = float(mean_iou(box[None], boxes)[0])
        if score > best_score + 1e-12:
            best, best_score = box, score
    x1, y1, x2, y2 = (float(v) for v in best)
    return x1, y1, x2, y2


def _climb(box: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move one corner at a time to its best place until nothing improves."""
    grid = np.linspace(0, 1, GRID)
    score = float(mean_iou(box[None], boxes)[0])
    improved = True
    while improved:
        improved = False
        for axis in range(4):
            low = box[axis - 2] if axis >= 2 else -1.0
            high = box[axis + 2] if axis < 2 else 2.0
            values = grid[(grid > low) & (grid < high)]
            candidates = np.repeat(box[None], len(values), 0)
            candidates[:, axis] = values
            scores = mean_iou(candidates, boxes)
            if len(values) and scores.max() > score + 1e-9:
                box, score, improved = candidates[scores.argmax()], float(scores.max()), True
    return box


def mean_iou(candidates: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean IoU of each candidate with all boxes. Shapes: (M, 4), (N, 4) -> (M,)."""
    low = np.maximum(candidates[:, None, :2], boxes[None, :, :2])
    high = np.minimum(candidates[:, None, 2:], boxes[None, :, 2:])
    inter = (high - low).clip(min=0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (candidates, boxes)]
    union = areas[0][:, None] + areas[1][None] - inter
    return (inter / np.maximum(union, 1e-12)).mean(1)


@cache
def embedded_baselines(crops: str = "fixed", by: str = "form") -> FittedBaselines:
    """Return baselines fitted on the training split of the embedded set under the crops it is evaluated with.

    Args:
        crops: `fixed` (random crops) or `none` (whole images).
        by: `form` or `question`, as for `fit_baselines`.
    """
    samples: list[Sample] = []
    for task, number in FIT_SAMPLES.items():
        samples += eval_samples(task, "train", crops=crops, n=number, seed=FIT_SEED)
    return fit_baselines(samples, by=by)

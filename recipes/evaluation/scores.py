"""Ask a model, score what it says, and say how sure the score is.

Answers are decoded greedily in packed batches. Every answer keeps its own scores, so that two checkpoints, or a
checkpoint and a baseline, are compared answer by answer. Intervals are over images, since questions about one image are
not independent; they speak of these scans only, however many images there are.

Shapes: N pairs of an image and its caption.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from medmo_core.boxes import AnyBoxes, ImageBoxes
from medmo_core.data.records.sample import Sample
from medmo_core.data.records.store import store_of
from medmo_core.data.sample_text import SampleText
from medmo_core.errors import InputError
from medmo_core.metrics import grounding_scores, mean_interval, paired_interval, report_fact_f1, vqa_correct

from .baselines import FittedBaselines

METRICS: dict[str, tuple[str, ...]] = {
    "vqa": ("vqa_accuracy",),
    "grounding": ("grounding_iou", "grounding_f1", "grounding_iou_said", "grounding_denied", "grounding_invented"),
    "report": ("report_fact_f1",),
}
"""Task -> its metrics, each the mean over the answers that have it.

Of grounding, IoU and F1 are those of questions about something that is there; `grounding_iou_said` is the IoU where the
answer says boxes, `grounding_denied` the share of answers that say that there is nothing, and `grounding_invented` the
share of answers with boxes where nothing is there. An answer that cannot be read says neither."""
WITHOUT_BASELINE = ("grounding_iou_said", "grounding_denied", "grounding_invented")
"""Metrics in which a box that is always the same is not compared: it never says that there is nothing."""


@dataclass(frozen=True)
class Prediction:
    """Answer of a model to one sample, with its scores.

    Attributes:
        sample_id: id of the sample, which pairs the predictions of two checkpoints.
        task: vqa, grounding or report.
        question: the last user text.
        text: what the model said.
        truth: what was expected, as text.
        scores: metric -> value in [0, 1].
        baseline: metric -> value of the baseline's answer to the same question; empty without a baseline.
        boxes_px: parsed boxes x1, y1, x2, y2 in pixels of their image.
        box_labels: one per box.
        box_images: index of each box's image; empty where the sample has one image.
        truth_px: the true boxes.
        truth_images: index of the image of each true box; empty where the sample has one image.
        image: key of the image, the group of its questions in an interval; never written to a file.
        scan: key of the patient or volume; never written to a file.
    """

    sample_id: str
    task: str
    question: str
    text: str
    truth: str
    scores: Mapping[str, float]
    baseline: Mapping[str, float] = field(default_factory=dict)
    boxes_px: Sequence[Sequence[float]] = ()
    box_labels: Sequence[str] = ()
    box_images: Sequence[int] = ()
    truth_px: Sequence[Sequence[float]] = ()
    truth_images: Sequence[int] = ()
    image: str = ""
    scan: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what may be written to a file."""
        return {name: value for name, value in asdict(self).items() if name not in ("image", "scan")}


@dataclass(frozen=True)
class Score:
    """A metric with its 95 % interval over images and, where there is a baseline, the paired difference to it.

    Attributes:
        value: mean.
        low: lower end of the interval; None where there is none to give (too few images, a median rank).
        high: upper end.
        n: answers.
        num_images: images they are about.
        num_scans: patients or volumes those come from.
        baseline: mean of the baseline (for retrieval: chance), or None.
        gain: value minus baseline, or None.
        gain_low: lower end of the paired interval.
        gain_high: upper end.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    num_images: int
    num_scans: int
    baseline: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None

    def to_json(self) -> dict[str, float | int | None]:
        """Return plain values."""
        return asdict(self)


def image_key(sample: Sample, *, crop: bool) -> str:
    """Name a sample's images: questions about one image are one group of an interval."""
    parts = [(i.path, i.frame, i.slice_index, i.plane, i.crop if crop else None) for i in sample.images]
    return f"{store_of(sample.root) or ''}{parts}"


def score_answers(
    samples: Sequence[Sample],
    texts: Sequence[str],
    sample_text: SampleText,
    baselines: FittedBaselines | None = None,
) -> list[Prediction]:
    """Score what was said to samples of vqa, grounding or report.

    Args:
        samples: samples with their truth.
        texts: one per sample.
        sample_text: writer of the truth as text; its profile reads the boxes.
        baselines: baselines, scored beside the model where they know the question.

    Raises:
        InputError: a sample of another task, or without the truth its task needs.
    """
    truths = [sample.truth_boxes() if sample.task == "grounding" else None for sample in samples]
    said = [
        None if truth is None else sample_text.profile.read_boxes(text, truth)
        for text, truth in zip(texts, truths, strict=True)
    ]
    # An answer that cannot be read is not the answer "no boxes".
    boxes = [parsed.boxes if parsed is not None and parsed.grammar is not None else None for parsed in said]
    scores = score_texts(samples, texts, boxes)
    baseline_scores = _baseline_scores(samples, baselines)
    return [
        Prediction(
            sample_id=sample.id,
            task=sample.task,
            question=sample_text.question_text(sample),
            text=text,
            truth=sample_text.target_text(sample),
            scores=score,
            baseline=baseline,
            boxes_px=[] if found is None else found.xyxy.tolist(),
            box_labels=() if found is None else found.labels,
            box_images=_images_of(found),
            truth_px=[] if truth is None else truth.xyxy.tolist(),
            truth_images=_images_of(truth),
            image=image_key(sample, crop=False),
            scan=sample.group or image_key(sample, crop=False),
        )
        for sample, text, score, baseline, found, truth in zip(
            samples, texts, scores, baseline_scores, boxes, truths, strict=True
        )
    ]


def _images_of(boxes: AnyBoxes | None) -> Sequence[int]:
    return boxes.images if isinstance(boxes, ImageBoxes) else ()


def score_texts(
    samples: Sequence[Sample], texts: Sequence[str], boxes: Sequence[AnyBoxes | None]
) -> list[dict[str, float]]:
    """Return metric -> value for each sample.

    Args:
        samples: samples with their truth.
        texts: what was said; unused for grounding.
        boxes: what was read out of it; None where it could not be read. Unused for other tasks.

    Raises:
        InputError: a task that is not scored here, or a sample without the truth its task needs.
    """
    pointing = [index for index, sample in enumerate(samples) if sample.task == "grounding"]
    said = [boxes[index] for index in pointing]
    found = grounding_scores(said, [_comparable(samples[i], b) for i, b in zip(pointing, said, strict=True)])
    pairs = dict(zip(pointing, zip(found.iou, found.f1, strict=True), strict=True))
    scores: list[dict[str, float]] = []
    for index, (sample, text) in enumerate(zip(samples, texts, strict=True)):
        if index in pairs:
            scores.append(_pointing_scores(sample, boxes[index], *pairs[index]))
        elif sample.task == "vqa" and sample.answer is not None:
            scores.append({"vqa_accuracy": float(vqa_correct(text, sample.answer))})
        elif sample.task == "report" and sample.facts:
            scores.append({"report_fact_f1": report_fact_f1(text, sample.facts)})
        else:
            raise InputError(
                f"{sample.id}: a sample of task {sample.task!r} cannot be scored as it is; "
                "vqa needs an answer, grounding an image and its boxes, report facts"
            )
    return scores


def _pointing_scores(sample: Sample, said: AnyBoxes | None, iou: float, f1: float) -> dict[str, float]:
    has_said = said is not None and len(said) > 0
    if not sample.sought:
        return {"grounding_invented": float(has_said)}
    scores = {"grounding_iou": iou, "grounding_f1": f1, "grounding_denied": float(said is not None and not has_said)}
    return {**scores, "grounding_iou_said": iou} if has_said else scores


def _comparable(sample: Sample, said: AnyBoxes | None) -> AnyBoxes:
    """Return the true boxes; without their labels where the answer's boxes have none either."""
    truth = sample.truth_boxes()
    if truth is None:
        raise InputError(f"{sample.id}: a grounding sample without an image cannot be scored")
    return truth if said is None or any(said.labels) else truth.with_labels([""] * len(truth))


def _baseline_scores(samples: Sequence[Sample], baselines: FittedBaselines | None) -> list[dict[str, float]]:
    """Score what the baselines answer; empty where they do not know the question."""
    results: list[dict[str, float]] = [{} for _ in samples]
    if baselines is None:
        return results
    answers: list[tuple[int, str, AnyBoxes | None]] = []
    for index, sample in enumerate(samples):
        text = None if sample.task == "grounding" else baselines.answer(sample)
        boxes = baselines.boxes(sample) if sample.task == "grounding" else None
        if text is not None or boxes is not None:
            answers.append((index, text or "", boxes))
    chosen = [samples[index] for index, _, _ in answers]
    scored = score_texts(chosen, [text for _, text, _ in answers], [boxes for _, _, boxes in answers])
    for (index, _, _), scores in zip(answers, scored, strict=True):
        results[index] = {metric: value for metric, value in scores.items() if metric not in WITHOUT_BASELINE}
    return results


def mean_score(predictions: Sequence[Prediction], metric: str) -> Score:
    """Average one metric, with an interval over images.

    Args:
        predictions: answers of one task, one of which at least has the metric; the others are left out.
        metric: one of the task's.
    """
    predictions = [p for p in predictions if metric in p.scores]
    values = [p.scores[metric] for p in predictions]
    images = [p.image for p in predictions]
    low, high = mean_interval(values, images) or (None, None)
    score = Score(
        value=sum(values) / len(values),
        low=low,
        high=high,
        n=len(values),
        num_images=len(set(images)),
        num_scans=len({p.scan for p in predictions}),
    )
    # A question the baseline has never met counts as answered wrongly by it.
    if not any(metric in p.baseline for p in predictions):
        return score
    others = [p.baseline.get(metric, 0.0) for p in predictions]
    gain_low, gain_high = paired_interval(values, others, images) or (None, None)
    baseline = sum(others) / len(others)
    return replace(score, baseline=baseline, gain=score.value - baseline, gain_low=gain_low, gain_high=gain_high)

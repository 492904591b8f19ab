"""Ask a model, score what it says, and say how sure the score is.

Answers are decoded greedily in packed batches. Every answer keeps its own scores, so that two checkpoints, or a
checkpoint and a baseline, are compared answer by answer. Intervals resample images, since questions about one image are
not independent; they speak of these scans only, however many images there are.

Shapes: N images (or captions) in a retrieval pool.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from medmo_core.batch import Batch
from medmo_core.boxes import Boxes, parse_boxes
from medmo_core.data.packing import pack
from medmo_core.data.process import Item, Processor
from medmo_core.data.record import Sample
from medmo_core.metrics import (
    bootstrap_ci,
    grounding_scores,
    paired_bootstrap,
    report_fact_f1,
    retrieval_ranks,
    vqa_correct,
)
from medmo_core.models.medmo import MedMO
from medmo_core.profile import CheckpointProfile

SPARE_TOKENS = 16  # an answer may be twice as long as the longest true one, and this much more
MAX_ANSWER_TOKENS = 1024

METRICS = {"vqa": ("vqa_accuracy",), "grounding": ("grounding_iou", "grounding_f1"), "report": ("report_fact_f1",)}
"""Task -> its metrics, the first of which leads."""


@dataclass(frozen=True)
class Prediction:
    """What a model said to one sample, and what that is worth.

    Attributes:
        sample_id: of the sample, for pairing runs.
        task: vqa, grounding or report.
        question: the last user text.
        text: what the model said.
        truth: what was expected, as text.
        scores: metric -> value in [0, 1].
        baseline: metric -> value of the baseline's answer to the same sample; empty without a baseline.
        boxes_px: parsed boxes x1, y1, x2, y2 in pixels of the sample's image.
        box_labels: one per box.
        truth_px: the true boxes.
        image: key of the image, by which intervals resample; stays in memory.
        scan: key of the patient or volume; stays in memory.
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
    truth_px: Sequence[Sequence[float]] = ()
    image: str = ""
    scan: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what may be written to a file: no key of image or patient."""
        return {name: value for name, value in asdict(self).items() if name not in ("image", "scan")}


@dataclass(frozen=True)
class Score:
    """A metric with its 95 % interval and, where there is one, the baseline's and the paired difference."""

    value: float
    low: float
    high: float
    n: int
    num_scans: int
    baseline: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None

    def to_json(self) -> dict[str, float | int | None]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Retrieval:
    """Ranks of the true candidate among N (1 = first), in both directions, on one pool."""

    caption_ranks: Sequence[int]
    """Of each image's caption among all captions."""
    image_ranks: Sequence[int]
    """Of each caption's image among all images."""
    scans: Sequence[str]


class BaselineAnswers:
    """What answers without looking: fitted on training data, same questions. See `medmo_core.datasets.baselines`."""


def answer(
    model: MedMO, processor: Processor, samples: Sequence[Sample], *, batch_size: int = 64, max_new_tokens: int | None = None
) -> list[str]:
    """Answer samples greedily.

    Args:
        model: the model.
        processor: encodes prompts, decodes answers.
        samples: questions; their own answers are not shown.
        batch_size: documents decoded together.
        max_new_tokens: longest answer; None: twice the longest true answer and some more.
    """
    limit = max_new_tokens or answer_limit(processor, samples)
    texts: list[str] = []
    for items in batched([processor.encode(sample, for_generation=True) for sample in samples], batch_size):
        batch = prompt_batch(items).to(model.head_weight.device)
        outcomes = model.generate(batch, max_new_tokens=limit)
        texts += [processor.tokenizer.decode(generations[0].tokens) for generations in outcomes]
    return texts

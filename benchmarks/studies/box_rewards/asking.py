"""Questions of a round, asked of one checkpoint, and what is measured of each answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medmo_core.data.records.sample import Sample
from medmo_core.datasets.embedded.targets import KINDS, target_samples
from medmo_core.datasets.embedded.tasks import absent_samples, eval_samples
from medmo_core.inference.kit import Kit
from medmo_recipes.evaluation.ask import answer, answer_limit
from medmo_recipes.evaluation.scores import Prediction, image_key, score_answers
from medmo_recipes.reinforcement.sharpening import sampled_box_reward

from .target_scores import num_duplicates

ONE_BOX = {"f1": "F1 at 0.5", "iou": "mean IoU", "false_positive": "boxes where there are none", "vqa": "VQA accuracy"}
TARGETS = {
    "f1": "F1 at 0.5",
    "duplicates": "duplicates an answer",
    "false_positive": "boxes where there are none",
    "count_error": "boxes too many or too few",
    "count": "counts right",
}
SHOWN = ("nuclei", "organs", "ribs", "vertebrae", "lesions")
"""Kinds that held-out images show."""
COUNTED = ("nuclei", "ribs", "vertebrae")
"""Kinds of these that are asked to be counted."""
ABSENT = ("nuclei", "ribs", "vertebrae", "lesions", "kidneys", "lungs")
"""Kinds of which there are held-out views that show none; every view of the abdomen shows an organ."""


def metrics_of(questions: Mapping[str, int]) -> dict[str, str]:
    """Return name -> heading of what a round measures; each is a number per question."""
    return ONE_BOX if "grounding" in questions else TARGETS


@dataclass(frozen=True)
class Measured:
    """Values of one metric.

    Attributes:
        values: one number per question.
        images: number of the image of each question, from 0.
        kinds: kind of targets of each question; empty where a round asks for one box.
    """

    values: Sequence[float]
    images: Sequence[int]
    kinds: Sequence[str] = ()


def measure(kit: Kit, questions: Mapping[str, int], temperatures: Sequence[float]) -> dict[str, Any]:
    """Ask a model the held-out questions, greedily, and sample it where the round does so.

    Returns:
        Metric -> one number per question; "NAME images" -> the image of each, numbered; "NAME kinds" -> the kind of
        targets of each, where there are kinds; "sampled" -> temperature -> mean overlap reward of samples.
    """
    found = _ask_for_one_box(kit, questions) if "grounding" in questions else _ask_for_targets(kit, questions)
    values: dict[str, Any] = {}
    for name, measured in found.items():
        values |= {name: list(measured.values), f"{name} images": list(measured.images)}
        if measured.kinds:
            values[f"{name} kinds"] = list(measured.kinds)
    if "sampled" in questions:
        sampled = sampled_box_reward(kit, num_prompts=questions["sampled"], temperatures=temperatures)
        values["sampled"] = {f"{t:g}": value for t, value in sampled.means().items()}
    return values


def training_questions(questions: Mapping[str, int]) -> list[Sample]:
    """Return the training questions whose completions the rewards are compared on."""
    if "grounding" in questions:
        return eval_samples("grounding", "train", n=2 * questions["sampled"])
    return target_samples("train", questions["judged"])


def judged_questions(questions: Mapping[str, int]) -> list[Sample]:
    """Return the training questions whose true answers are changed, for `judge`."""
    number = questions["judged"]
    return target_samples("train", number, form="find_all") + target_samples("train", number, form="find_none")


def _ask_for_one_box(kit: Kit, questions: Mapping[str, int]) -> dict[str, Measured]:
    pointing = eval_samples("grounding", n=questions["grounding"])
    nothing = absent_samples(n=questions["absent"])
    asking = eval_samples("vqa", n=questions["vqa"])
    boxes, empty, answers = (_ask(kit, samples) for samples in (pointing, nothing, asking))
    return {
        "f1": Measured([p.scores["grounding_f1"] for p in boxes], _images(pointing)),
        "iou": Measured([p.scores["grounding_iou"] for p in boxes], _images(pointing)),
        "false_positive": Measured([float(len(p.boxes_px) > 0) for p in empty], _images(nothing)),
        "vqa": Measured([p.scores["vqa_accuracy"] for p in answers], _images(asking)),
    }


def _ask_for_targets(kit: Kit, questions: Mapping[str, int]) -> dict[str, Measured]:
    present = target_samples(n=questions["find_all"], form="find_all", kinds=SHOWN)
    nothing = target_samples(n=questions["find_none"], form="find_none", kinds=ABSENT)
    counting = target_samples(n=questions["count"], form="count", kinds=COUNTED)
    found, empty, counts = (_ask(kit, samples) for samples in (present, nothing, counting))
    both, samples = [*found, *empty], [*present, *nothing]
    copies = [
        num_duplicates(p.boxes_px, p.box_labels, p.truth_px, [b.label for b in s.boxes])
        for p, s in zip(both, samples, strict=True)
    ]
    return {
        "f1": _measured([p.scores["grounding_f1"] for p in found], present),
        "duplicates": _measured([float(number) for number in copies], samples),
        "false_positive": _measured([float(len(p.boxes_px) > 0) for p in empty], nothing),
        "count_error": _measured([float(abs(len(p.boxes_px) - len(p.truth_px))) for p in both], samples),
        "count": _measured([p.scores["vqa_accuracy"] for p in counts], counting),
    }


def _ask(kit: Kit, samples: Sequence[Sample]) -> list[Prediction]:
    texts = answer(kit.model, kit.processor, samples, max_new_tokens=answer_limit(kit.processor, samples))
    return score_answers(samples, texts, kit.processor.text)


def _measured(values: Sequence[float], samples: Sequence[Sample]) -> Measured:
    kinds = [str(sample.provenance["about"]) for sample in samples]
    assert set(kinds) <= set(KINDS)
    return Measured(values, _images(samples), kinds)


def _images(samples: Sequence[Sample]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(image_key(s, crop=False), len(numbers)) for s in samples]

"""Reward `label`: the right findings named, wherever they are: MedMO's label accuracy."""

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from ..boxes import AnyBoxes, Boxes, ParsedBoxes
from ..findings.synonyms import one_name
from ..metrics.text import completion_text, final_answer, normalise
from ..profile import MEDMO, QWEN3_VL, CheckpointProfile
from .box_answers import ParsedAnswers, parse_answers
from .example import Example
from .plain import reads_plain

if TYPE_CHECKING:
    from ..data.records.sample import Answer

RULES = ("f1", "exact")
_NEXT_LABEL = re.compile(r"[,;|\n]|\band\b")
_LEAD_IN = re.compile(r"^\W*(?:labels?|findings?|answer)\s*:", re.IGNORECASE)


@reads_plain
def label_reward(
    completions: Sequence[Any],
    *,
    task: Sequence[str],
    answer: Sequence["Answer | None"],
    boxes: Sequence[AnyBoxes | None],
    profile: Sequence[CheckpointProfile] | CheckpointProfile,
    parsed_boxes: ParsedAnswers | None = None,
    rule: str = "f1",
    **columns: Any,
) -> list[float | None]:
    """Score the set of labels a completion names against the true one; where the boxes lie is not looked at.

    MedMO names this reward and publishes no matching rule; ours: labels compare after normalisation (case, articles,
    punctuation, British spelling) and with one name for all that mean the same, each label once. In grounding the
    true labels are those of the boxes; in visual question answering those of an open answer, apart at commas,
    semicolons, line breaks and "and".

    Args:
        completions: texts, or chats that end with one. In grounding, labels are read from boxes in the profile's
            grammar, and where there are none that can be read, from the text as a list of labels.
        task: task of each sample.
        answer: the true answers.
        boxes: the true boxes.
        profile: grammar of the completion.
        parsed_boxes: boxes of the completions, where they have been read already (`parse_answers`); None: read here.
        rule: `f1` = 2 common / (said + true) (the default), or `exact`: 1 for equal sets, else 0.
        columns: not used.

    Returns:
        Scores in [0, 1]; None where the task is neither grounding nor an open question, or the true boxes bear no
        label. Saying that there is nothing, where nothing is, scores 1; an empty or malformed completion scores 0.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"label_reward: unknown rule {rule!r}, expected one of {', '.join(RULES)}")
    parsed_boxes = parse_answers(completions, task, boxes, profile, parsed_boxes)
    scores: list[float | None] = []
    for text, kind, truth, placed, parsed in zip(completions, task, answer, boxes, parsed_boxes, strict=True):
        said = completion_text(text)
        if placed is not None and parsed is not None:
            true = _labels(placed.labels)
            found = _box_labels(said, parsed)
            applies = bool(true) or len(placed) == 0
        else:
            applies = kind == "vqa" and truth is not None and truth.type == "open"
            true = _listed(str(truth.value)) if truth is not None and applies else set()
            found = _listed(final_answer(said))
        scores.append(_agreement(found, true, rule) if applies else None)
    return scores


def _agreement(found: set[str] | None, true: set[str], rule: str) -> float:
    """Return how well two sets agree; None was no answer."""
    if found is None:
        return 0.0
    if rule == "exact" or not found | true:
        return float(found == true)
    return 2 * len(found & true) / (len(found) + len(true))


def _labels(names: Sequence[str]) -> set[str]:
    return {name for name in (normalise(one_name(normalise(label))) for label in set(names)) if name}


def _listed(text: str) -> set[str]:
    """Return the labels of a list in words."""
    return _labels(_NEXT_LABEL.split(_LEAD_IN.sub("", text)))


def _box_labels(text: str, parsed: ParsedBoxes[AnyBoxes]) -> set[str] | None:
    """Return the labels of a completion's boxes, or of its words; None where it names nothing and denies nothing."""
    if parsed.grammar is not None and (parsed.ok or len(parsed.boxes)):
        return _labels(parsed.boxes.labels)
    return _listed(final_answer(text)) or None


_SIZE = (200, 100)
_TRUE = Boxes(torch.tensor([[20.0, 10.0, 60.0, 50.0], [120.0, 10.0, 160.0, 50.0]]), "pixel", _SIZE, ("mass", "nodule"))
_NONE = Boxes.empty(_SIZE)
_BARE = Boxes(torch.tensor([[20.0, 10.0, 60.0, 50.0]]), "pixel", _SIZE, ("",))


def _example(
    about: str, completion: Any, score: float | None, truth: Boxes | str = _TRUE, *, task: str = "grounding",
    profile: CheckpointProfile = QWEN3_VL,
) -> Example:  # fmt: skip
    kind, value, placed = ("open", truth, None) if isinstance(truth, str) else ("boxes", None, truth)
    answer = SimpleNamespace(type=kind, value=value, choices=())
    return Example(about, completion, score, {"task": task, "answer": answer, "boxes": placed, "profile": profile})


def _said(*labels: str) -> str:
    return "[" + ", ".join(f'{{"bbox_2d": [0, 0, 9, 9], "label": "{label}"}}' for label in labels) + "]"


EXAMPLES = (
    _example("both labels, boxes anywhere", _said("Nodule", "mass"), 1.0),
    _example("one of two", _said("mass"), 2 / 3),
    _example("one too many", _said("mass", "nodule", "scar"), 4 / 5),
    _example("a label again earns nothing", _said("mass", "mass", "mass"), 2 / 3),
    _example("wrong labels", _said("scar"), 0.0),
    _example("labels without boxes", "mass and nodule", 1.0),
    _example("MedMO's grammar", "mass <box>[[1, 2, 3, 4]]</box>\nnodule <box>[[5, 6, 7, 8]]</box>", 1.0, profile=MEDMO),
    _example("nothing said of nothing", "[]", 1.0, _NONE),
    _example("something said of nothing", _said("mass"), 0.0, _NONE),
    _example("nothing said of something", "[]", 0.0),
    _example("an empty text of nothing", "", 0.0, _NONE),
    _example("no text at all", None, 0.0),
    _example("true boxes without label", _said("mass"), None, _BARE),
    _example("a list of labels", "Label: effusion; enlarged heart", 1.0, "Cardiomegaly, effusion", task="vqa"),
    _example("a part of the list", "effusion", 2 / 3, "cardiomegaly, effusion", task="vqa"),
    _example("an empty answer", "", 0.0, "effusion", task="vqa"),
    _example("another task", "mass", None, task="report"),
)

"""Reward `answer`: a visual question answered right."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..metrics.text import completion_text
from ..metrics.vqa import VQA_TYPES, vqa_correct
from .example import Example
from .plain import reads_plain

if TYPE_CHECKING:
    from ..data.records.sample import Answer


@reads_plain
def answer_reward(
    completions: Sequence[Any], *, answer: Sequence["Answer | None"], **columns: Any
) -> list[float | None]:
    """Score 1 for a right answer and 0 for any other text, by the rules of `medmo_core.metrics.vqa`.

    Args:
        completions: texts, or chats that end with one.
        answer: the true answers.
        columns: not used.

    Returns:
        1, 0, or None where the sample has no answer of type yesno, choice or open. An empty or malformed completion
        scores 0.
    """
    return [
        None if truth is None or truth.type not in VQA_TYPES else float(vqa_correct(completion_text(text), truth))
        for text, truth in zip(completions, answer, strict=True)
    ]


def _example(about: str, completion: Any, score: float | None, kind: str, value: Any, *choices: str) -> Example:
    return Example(about, completion, score, {"answer": SimpleNamespace(type=kind, value=value, choices=choices)})


_CHOICES = ("liver", "spleen", "left kidney")

EXAMPLES = (
    _example("the first word decides", "Yes, it is visible.", 1.0, "yesno", "yes"),
    _example("both words are no answer", "yes no yes", 0.0, "yesno", "yes"),
    _example("thinking is not the answer", "<think>no?</think><answer>Yes</answer>", 1.0, "yesno", "yes"),
    _example("an empty text is wrong", "", 0.0, "yesno", "no"),
    _example("a text that is none is wrong", None, 0.0, "yesno", "no"),
    _example("a letter", "(b)", 1.0, "choice", "spleen", *_CHOICES),
    _example("letter and text", "C: the left kidney", 1.0, "choice", "C", *_CHOICES),
    _example("a letter with another's text", "A) spleen", 0.0, "choice", "spleen", *_CHOICES),
    _example("case and article", "The left-kidney.", 1.0, "open", "Left kidney"),
    _example("a synonym", "Enlarged heart", 1.0, "open", "cardiomegaly"),
    _example("British spelling", "pulmonary oedema", 1.0, "open", "Pulmonary edema"),
    _example("a kind of it is not it", "edema", 0.0, "open", "pulmonary edema"),
    _example("a longer text", "liver or spleen", 0.0, "open", "liver"),
    _example("a number in another unit", "1.2 cm", 1.0, "open", "12 mm"),
    _example("a wrong number", "13", 0.0, "open", "12"),
    _example("boxes are not its business", "[]", None, "boxes", None),
)

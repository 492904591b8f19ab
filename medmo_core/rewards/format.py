"""Reward `format`: an answer in the form its task asks for."""

import re
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..boxes import AnyBoxes, ParsedBoxes, by_image
from ..metrics.text import completion_text, final_answer
from ..profile import QWEN3_VL, CheckpointProfile
from .box_answers import ParsedAnswers, answer_places, parse_answers
from .example import Example
from .plain import reads_plain

if TYPE_CHECKING:
    from ..data.records.sample import Answer

MAX_REPEATS = 3
NGRAM = 4
MAX_ANSWER_WORDS = 24
_STRAY_TOKEN = re.compile(r"<\|[^|<>]*\|>|\ufffd")
_YES_NO = re.compile(r"\s*(?:yes|no)\b", re.IGNORECASE)
_ENDED = re.compile(r"[.!?)\]\"]\s*$")


@reads_plain
def format_reward(
    completions: Sequence[Any],
    *,
    task: Sequence[str],
    answer: Sequence["Answer | None"],
    image_size: Sequence[tuple[int, int] | None],
    profile: Sequence[CheckpointProfile] | CheckpointProfile,
    boxes: Sequence[AnyBoxes | None] | None = None,
    parsed_boxes: ParsedAnswers | None = None,
    finished: Sequence[bool] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Score the form of each completion, whatever it says.

    grounding: 1 when the text is boxes (or a statement that there are none) in the profile's grammar and no box stands
    there twice, 1/2 when boxes can be read but something is wrong with the text. vqa: 1 for yes or no where that is
    asked, else for 1 to 24 words. caption, report and all else: 1 for text that ends like a sentence, 1/2 for text that
    does not.

    Args:
        completions: texts, or chats that end with one.
        task: task of each sample.
        answer: the true answers; only their type is read.
        image_size: (width, height) px.
        profile: frame and grammar of the completion.
        boxes: the true boxes, of which only the sizes of several images are read; None: there is one image at most.
        parsed_boxes: boxes of the completions, where they have been read already (`parse_answers`); None: read here.
        finished: whether the model stopped by itself; None: taken from the text.
        columns: not used.

    Returns:
        Scores in [0, 1], never None. Empty, malformed, unfinished, repeating (four words in a row more than three
        times) and garbled texts (stray special tokens, broken characters) score 0.
    """
    stopped = [True] * len(completions) if finished is None else finished
    known = [None] * len(completions) if boxes is None else boxes
    parsed_boxes = parse_answers(completions, task, answer_places(known, image_size), profile, parsed_boxes)
    return [
        _form(completion_text(text), kind, truth, parsed) if done else 0.0
        for text, kind, truth, parsed, done in zip(completions, task, answer, parsed_boxes, stopped, strict=True)
    ]


def _form(text: str, kind: str, truth: "Answer | None", parsed: ParsedBoxes[AnyBoxes] | None) -> float:
    if not text.strip():
        return 0.0
    if parsed is not None:
        return _box_form(text, parsed)
    if _STRAY_TOKEN.search(text) or repeats(text):
        return 0.0
    said = final_answer(text)
    if kind == "vqa":
        if truth is not None and truth.type == "yesno":
            return float(_YES_NO.match(said) is not None)
        return float(1 <= len(said.split()) <= MAX_ANSWER_WORDS)
    if not any(character.isalpha() for character in said):
        return 0.0
    return 1.0 if _ENDED.search(said) else 0.5


def _box_form(text: str, parsed: ParsedBoxes[AnyBoxes]) -> float:
    if parsed.grammar is None or "\ufffd" in text:
        return 0.0
    rows = [
        (image, label, tuple(row))
        for image, part in enumerate(by_image(parsed.boxes))
        for label, row in zip(part.labels, part.xyxy.tolist(), strict=True)
    ]
    if max(Counter(rows).values(), default=0) > MAX_REPEATS:
        return 0.0
    if parsed.ok and len(set(rows)) == len(rows):
        return 1.0
    return 0.5 if rows else 0.0


def repeats(text: str) -> bool:
    """Say whether four words in a row come more than three times."""
    words = text.casefold().split()
    runs = Counter(tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1))
    return max(runs.values(), default=0) > MAX_REPEATS


def _example(
    about: str, completion: Any, score: float, task: str, kind: str = "open", *, finished: bool = True
) -> Example:
    columns = {
        "task": task,
        "answer": SimpleNamespace(type=kind, value="", choices=()),
        "image_size": (200, 100),
        "profile": QWEN3_VL,
        "finished": finished,
    }
    return Example(about, completion, score, columns)


_BOX = '{"bbox_2d": [100, 100, 300, 500], "label": "liver"}'

EXAMPLES = (
    _example("boxes", f"[{_BOX}]", 1.0, "grounding", "boxes"),
    _example("no boxes, and said so", "[]", 1.0, "grounding", "boxes"),
    _example("one box twice", f"[{_BOX}, {_BOX}]", 0.5, "grounding", "boxes"),
    _example("cut off", f'[{_BOX}, {{"bbox_2d": [1', 0.5, "grounding", "boxes"),
    _example("another grammar", "liver <box>[[100, 100, 300, 500]]</box>", 0.5, "grounding", "boxes"),
    _example("one box again and again", "[" + ", ".join([_BOX] * 5) + "]", 0.0, "grounding", "boxes"),
    _example("babble", "the liver", 0.0, "grounding", "boxes"),
    _example("yes", "Yes.", 1.0, "vqa", "yesno"),
    _example("neither yes nor no", "liver", 0.0, "vqa", "yesno"),
    _example("a name", "left kidney", 1.0, "vqa"),
    _example("a lecture", "liver spleen " * 2 + " ".join(map(str, range(30))), 0.0, "vqa"),
    _example("a sentence", "The liver is visible.", 1.0, "report", "report"),
    _example("a sentence without end", "The liver is", 0.5, "report", "report"),
    _example("a sentence that was stopped", "The liver is visible.", 0.0, "report", "report", finished=False),
    _example("repetition", "the liver is visible " * 9 + ".", 0.0, "report", "report"),
    _example("a stray token", "The liver <|image_pad|> is visible.", 0.0, "caption", "report"),
    _example("an empty text", " ", 0.0, "report", "report"),
    _example("no text at all", None, 0.0, "vqa"),
)

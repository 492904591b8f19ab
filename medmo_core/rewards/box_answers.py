"""Completions read as boxes, laid out as one ragged batch for the box rewards."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from ..boxes import GRAMMARS, AnyBoxes
from ..metrics.matching import BoxProblems, box_problems
from ..metrics.text import completion_text
from ..profile import CheckpointProfile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..boxes import ParsedBoxes

APPLIES_TO = ("grounding",)


class BoxAnswers(NamedTuple):
    """The completions of a batch that box rewards score.

    Attributes:
        scores: one per completion: None where the reward does not apply, else 0 until it is scored.
        rows: indices of the completions that have a problem to score.
        problems: their predicted and true boxes.
    """

    scores: list[float | None]
    rows: list[int]
    problems: BoxProblems

    def filled(self, values: Sequence[float]) -> list[float | None]:
        """Return `scores` with the value of each row, kept in [0, 1]."""
        scores = list(self.scores)
        for row, value in zip(self.rows, values, strict=True):
            scores[row] = min(max(value, 0.0), 1.0)
        return scores


def box_answers(
    completions: Sequence[Any],
    task: Sequence[str],
    boxes: Sequence[AnyBoxes | None],
    image_size: Sequence[tuple[int, int] | None],
    profile: Sequence[CheckpointProfile] | CheckpointProfile,
    *,
    compare_labels: bool = True,
) -> BoxAnswers:
    """Read the boxes of each completion.

    A completion without readable boxes and without a statement that there are none keeps the score 0, and so does any
    fault where nothing is true. Boxes that cannot be used are left out, partly outside ones are clipped.

    Args:
        completions: texts, or chats that end with one.
        task: of each sample; others than grounding do not apply.
        boxes: the true boxes; None: does not apply.
        image_size: (width, height) px; None: does not apply.
        profile: frame and grammar of the completion.
        compare_labels: labels must agree for boxes to match, where the grammar and the true boxes have any; a box
            without label is the questioned one where all true boxes bear one label. Off: no label is compared.
    """
    scores: list[float | None] = [None] * len(completions)
    asked: list[tuple[int, str, AnyBoxes, CheckpointProfile]] = []
    for index, (text, kind, true_boxes, size, spoken) in enumerate(
        zip(completions, task, boxes, image_size, _each(profile, len(completions)), strict=True)
    ):
        if kind in APPLIES_TO and true_boxes is not None and size is not None:
            scores[index] = 0.0
            asked.append((index, completion_text(text), true_boxes, spoken))
    rows: list[int] = []
    found: list[AnyBoxes] = []
    truth: list[AnyBoxes] = []
    for (index, _, true_boxes, spoken), parsed in zip(asked, _parsed(asked), strict=True):
        if parsed.grammar is None or (len(true_boxes) == 0 and not parsed.ok):
            continue
        rows.append(index)
        found.append(parsed.boxes)
        labelled = compare_labels and GRAMMARS[spoken.grammar].labels != "none"
        truth.append(true_boxes if labelled else true_boxes.with_labels([""] * len(true_boxes)))
    return BoxAnswers(scores, rows, box_problems(found, truth))


def _parsed(asked: "list[tuple[int, str, AnyBoxes, CheckpointProfile]]") -> "Iterator[ParsedBoxes[AnyBoxes]]":
    """Read all texts of one profile together: neighbours mostly share theirs."""
    for spoken, run in groupby(asked, key=itemgetter(3)):
        _, texts, where, _ = zip(*run, strict=True)
        yield from spoken.parse_many(texts, where)


def _each(profile: Sequence[CheckpointProfile] | CheckpointProfile, count: int) -> "Iterator[CheckpointProfile]":
    return iter([profile] * count if isinstance(profile, CheckpointProfile) else profile)

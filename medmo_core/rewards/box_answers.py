"""Completions read as boxes: once for all rewards, and laid out as one ragged batch for the box rewards."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from ..boxes import GRAMMARS, AnyBoxes, Boxes, ParsedBoxes
from ..metrics.matching import BoxProblems, box_problems
from ..metrics.text import completion_text
from ..profile import CheckpointProfile

APPLIES_TO = ("grounding",)
NO_SIZE = (1000, 1000)  # a grounding sample without image: its boxes are read as thousandths

ParsedAnswers = Sequence[ParsedBoxes[AnyBoxes] | None]
"""Boxes of each completion, as `parse_answers` reads them; None where nothing was to be read."""


class BoxAnswers(NamedTuple):
    """Completions of a batch that box rewards score.

    Attributes:
        scores: score of each completion: None where the reward does not apply, else 0 until it is scored.
        rows: indices of the completions that have a problem to score.
        problems: predicted and true boxes of those completions.
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


def parse_answers(
    completions: Sequence[Any],
    task: Sequence[str],
    where: Sequence[AnyBoxes | None],
    profile: Sequence[CheckpointProfile] | CheckpointProfile,
    known: ParsedAnswers | None = None,
) -> list[ParsedBoxes[AnyBoxes] | None]:
    """Read the boxes of every completion that answers a grounding question.

    Args:
        completions: texts, or chats that end with one.
        task: task of each sample; completions of other tasks than grounding are not read.
        where: true boxes of each sample, or none in their place (they know the sizes of the images); a completion
            without them is not read.
        profile: frame and grammar of the completions.
        known: boxes that were read before; only what is missing there is read. None: nothing was.

    Returns:
        Boxes of each completion as `CheckpointProfile.parse_boxes` reads them, None where it is not read.
    """
    parsed: list[ParsedBoxes[AnyBoxes] | None] = [None] * len(completions) if known is None else list(known)
    asked = [
        (index, text, placed, spoken)
        for index, (text, kind, placed, spoken, found) in enumerate(
            zip(completions, task, where, each_profile(profile, len(completions)), parsed, strict=True)
        )
        if found is None and kind in APPLIES_TO and placed is not None
    ]
    for spoken, run in groupby(asked, key=itemgetter(3)):  # neighbours mostly share their profile
        rows, texts, places, _ = zip(*run, strict=True)
        found = spoken.parse_many([completion_text(text) for text in texts], places)
        for row, boxes in zip(rows, found, strict=True):
            parsed[row] = boxes
    return parsed


def answer_places(boxes: Sequence[AnyBoxes | None], image_size: Sequence[tuple[int, int] | None]) -> list[AnyBoxes]:
    """Return what completions are read with: the true boxes, or none of an image of the given size."""
    return [Boxes.empty(size or NO_SIZE) if b is None else b for b, size in zip(boxes, image_size, strict=True)]


def box_answers(
    completions: Sequence[Any],
    task: Sequence[str],
    boxes: Sequence[AnyBoxes | None],
    image_size: Sequence[tuple[int, int] | None],
    profile: Sequence[CheckpointProfile] | CheckpointProfile,
    parsed_boxes: ParsedAnswers | None = None,
    *,
    compare_labels: bool = True,
) -> BoxAnswers:
    """Lay out the boxes of completions and the true ones.

    A completion without readable boxes and without a statement that there are none keeps the score 0, and so does any
    fault where nothing is true. Boxes that cannot be used are left out, partly outside ones are clipped.

    Args:
        completions: texts, or chats that end with one.
        task: task of each sample; the rewards apply to grounding only.
        boxes: the true boxes; the rewards do not apply to a sample without them.
        image_size: (width, height) px; the rewards do not apply to a sample without it.
        profile: frame and grammar of the completions.
        parsed_boxes: boxes of the completions as `parse_answers` reads them; None: they are read here.
        compare_labels: labels must agree for boxes to match, where the grammar and the true boxes have any; a box
            without label is the questioned one where all true boxes have one label. Off: no label is compared.
    """
    places = [b if size is not None else None for b, size in zip(boxes, image_size, strict=True)]
    parsed_boxes = parse_answers(completions, task, places, profile, parsed_boxes)
    scores: list[float | None] = [None] * len(completions)
    rows: list[int] = []
    found: list[AnyBoxes] = []
    truth: list[AnyBoxes] = []
    for index, (kind, true_boxes, parsed, spoken) in enumerate(
        zip(task, places, parsed_boxes, each_profile(profile, len(completions)), strict=True)
    ):
        if kind not in APPLIES_TO or true_boxes is None or parsed is None:
            continue
        scores[index] = 0.0
        if parsed.grammar is None or (len(true_boxes) == 0 and not parsed.ok):
            continue
        rows.append(index)
        found.append(parsed.boxes)
        labelled = compare_labels and GRAMMARS[spoken.grammar].labels != "none"
        truth.append(true_boxes if labelled else true_boxes.with_labels([""] * len(true_boxes)))
    return BoxAnswers(scores, rows, box_problems(found, truth))


def each_profile(profile: Sequence[CheckpointProfile] | CheckpointProfile, count: int) -> Iterator[CheckpointProfile]:
    """Return the profile of each of `count` completions."""
    return iter([profile] * count if isinstance(profile, CheckpointProfile) else profile)

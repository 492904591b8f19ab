"""Dialogues over one view of an embedded image: many questions for the price of one picture.

The first turn is drawn like a sample of its task, window included; the later ones ask about the same window.
So a model that is asked one question at a time has met every question as a first turn too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

from ...data.records.sample import BoxAnnotation, Message, Sample
from .facts import EMBEDDED_ROOT, ImageFacts, View
from .questions import ask
from .tasks import STREAM_PREFIX, Draft, EmbeddedTasks, bind, box_annotations, draft_of, forms_of, from_question

NUM_TURNS = 4
TURN_WEIGHTS = {"grounding": 0.7, "vqa": 0.2, "caption": 0.03, "report": 0.04, "retrieval": 0.03}


class Dialogues:
    """Questions of all tasks in turns, as a source for a mixture.

    Args:
        split: train or test; a volume is in one of them only.
        crops: draw a random square window for every dialogue; otherwise show whole images.
    """

    def __init__(self, split: str = "train", crops: bool = True) -> None:
        self.name = "embedded:dialogue"
        self.stream = f"{STREAM_PREFIX}dialogue"
        self.root: Path = EMBEDDED_ROOT
        self.split, self.crops = split, crops
        self._tasks = {task: EmbeddedTasks(task, split, crops) for task in TURN_WEIGHTS}

    def __len__(self) -> int:
        return len(self._tasks["caption"])

    def get(self, index: int, rng: Random) -> Sample:
        """Return a dialogue about some image; index and `rng` choose it."""
        first = self._tasks[choose_task(rng)]
        record = first.record(index % len(first))
        draft, view = first.draft(record, rng)
        drafts = [draft]
        for _ in range(NUM_TURNS - 1):
            following = draft_in_view(choose_task(rng), record, view, rng)
            if following is not None and all(following.question != d.question for d in drafts):
                drafts.append(following)
        return join_turns(drafts, view)


def choose_task(rng: Random) -> str:
    """Draw the task of a turn."""
    return rng.choices(list(TURN_WEIGHTS), list(TURN_WEIGHTS.values()))[0]


def draft_in_view(task: str, record: ImageFacts, view: View, rng: Random) -> Draft | None:
    """Write a turn of a task about a view that is given; None where the view does not allow it."""
    if task == "vqa":
        return from_question(ask(record, lambda _: view, rng, crops=False))
    drafts = (draft_of(task, form, view, rng) for form in forms_of(task, rng, plain_boxes=False))
    return next((draft for draft in drafts if draft is not None), None)


def join_turns(drafts: list[Draft], view: View) -> Sample:
    """Return one sample whose turns are the drafts; boxes are named by index, for the profile to write."""
    sample = bind("dialogue", drafts[0], view)
    boxes: list[BoxAnnotation] = []
    messages: list[Message] = []
    for number, draft in enumerate(drafts):
        question = {"type": "text", "text": draft.question}
        messages.append({"role": "user", "content": [question] if number else [{"type": "image"}, question]})
        if draft.answer.type == "boxes":
            shown = box_annotations(draft.boxes)
            part = {"type": "boxes", "boxes": list(range(len(boxes), len(boxes) + len(shown)))}
            messages.append({"role": "assistant", "content": [part]})
            boxes += shown
        else:
            assert draft.answer.value is not None
            messages.append({"role": "assistant", "content": draft.answer.value})
    about = "+".join(f"{d.form}:{d.about}" if d.about else d.form for d in drafts[1:])
    return replace(
        sample,
        id=f"{sample.id}+{about}" if about else sample.id,
        messages=tuple(messages),
        boxes=tuple(boxes),
        answer=None,
        facts=tuple(dict.fromkeys(fact for draft in drafts for fact in draft.facts)),
    )

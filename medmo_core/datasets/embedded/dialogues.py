"""Dialogues over one view of an embedded image: many questions for the price of one picture.

Most ask where something is. The same view is asked for what it shows and for what it does not, so the looks of a scan
say nothing about whether a structure is there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

from ...data.records.sample import BoxAnnotation, Message, Sample
from .facts import EMBEDDED_ROOT, View
from .questions import ask
from .tasks import (
    STREAM_PREFIX,
    Draft,
    EmbeddedTasks,
    absent_names,
    ask_absent,
    ask_where,
    bind,
    box_annotations,
    draft_of,
    from_question,
    image_of,
    single_targets,
)

GROUNDED_SHARE = 0.85
"""Share of the dialogues whose view is one that a grounding question can be asked of."""
NUM_PRESENT, NUM_ABSENT = 5, 3
"""Structures asked for at most: that the view shows, and that it does not."""
TEXT_SHARE = 0.15
"""How often a dialogue asks for a caption, a report or the layout."""
TEXT_TASKS = ("caption", "report", "retrieval")


class Dialogues:
    """Questions of all tasks in turns, as a source for a mixture.

    Args:
        split: train or test, a volume is in one of them only; or a part of train.
        crops: draw a random square window for every dialogue; otherwise show whole images.
    """

    def __init__(self, split: str = "train", crops: bool = True) -> None:
        self.name = "embedded:dialogue"
        self.stream = f"{STREAM_PREFIX}dialogue"
        self.root: Path = EMBEDDED_ROOT
        self.split, self.crops = split, crops
        self._grounded = EmbeddedTasks("grounding", split, crops)
        self._any = EmbeddedTasks("caption", split, crops)

    def __len__(self) -> int:
        return len(self._any)

    def get(self, index: int, rng: Random) -> Sample:
        """Return a dialogue about some image; index and `rng` choose it."""
        task = self._grounded if rng.random() < GROUNDED_SHARE else self._any
        _, view = task.draft(task.record(index % len(task)), rng)
        return join_turns(turns_about(view, rng), view)


def turns_about(view: View, rng: Random) -> list[Draft]:
    """Write the turns about a view, at least one, no question twice."""
    present = sorted(single_targets(view), key=lambda seen: seen.name)
    drafts = [ask_where(seen) for seen in rng.sample(present, min(NUM_PRESENT, len(present)))]
    absent = absent_names(view)
    # As many for what is there as in a full dialogue: an answer must not be likely before the picture is looked at.
    wanted = max(1, round(NUM_ABSENT * len(drafts) / NUM_PRESENT))
    drafts += [ask_absent(name) for name in rng.sample(absent, min(wanted, len(absent)))]
    nuclei = draft_of("grounding", "all", view, rng)
    if nuclei is not None:
        drafts.append(nuclei)
    drafts.append(from_question(ask(view.record, lambda _: view, rng, crops=False)))
    for task in TEXT_TASKS:
        written = draft_of(task, task, view, rng) if rng.random() < TEXT_SHARE else None
        if written is not None:
            drafts.append(written)
    rng.shuffle(drafts)
    return drafts


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
        images=(image_of(view, [draft.form for draft in drafts]),),
        id=f"{sample.id}+{about}" if about else sample.id,
        messages=tuple(messages),
        boxes=tuple(boxes),
        answer=None,
        facts=tuple(dict.fromkeys(fact for draft in drafts for fact in draft.facts)),
    )

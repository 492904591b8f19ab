"""The embedded data set as a source of training samples, and fixed samples to evaluate on.

Random square crops are what makes a small model learn to look: without them a constant box per organ is a strong
answer. A crop is drawn first and every text is then written from what it shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from ...data.images.crop import random_square_window
from ...data.records.sample import Answer, BoxAnnotation, Fact, ImageRef, Message, Sample
from ...errors import InputError
from . import texts
from .facts import EMBEDDED_ROOT, ImageFacts, Seen, View, Window, load_facts, look
from .questions import Question, ask
from .uptake import outlines_of

EMBEDDED_TASKS = ("caption", "vqa", "report", "retrieval", "grounding")
EMBEDDED_SPLITS = ("train", "test", "fit", "val", "val_scans")
"""`val` is blocks of slices of the largest training scan, `val_scans` two whole scans, and `fit` all of `train` but
these: settings are compared on them, so that the test scans have no say in what is shipped."""
VAL_SOURCE, VAL_BLOCK, VAL_EVERY, VAL_PLACE = "ct-abdomen", 8, 6, 3
VAL_SCANS = ("ct-aorta", "mr-abdomen")
SOURCE_WEIGHTS = {
    "ct-abdomen": 0.76,
    "ct-contrast": 0.88,
    "mr-abdomen": 0.07,
    "ct-aorta": 0.12,
    "lesion": 0.08,
    "lesion-pasted": 0.06,
    "nuclei": 0.02,
    "fundus": 0.01,
    "mr-liver-overlay": 0.01,
    "ihc": 0.005,
    "phase-cell": 0.005,
}
"""Sources without a weight (`nuclei-held-out`) are left to the data set of targets."""
STREAM_PREFIX = "sample:"  # the set's former name, in its random numbers: another would change what every run draws
NUM_SLOTS = 2000  # of the table that turns weights into repetitions
MAX_ATTEMPTS = 12
CROP_RATIOS = (0.55, 1.3)  # side of a crop over the shorter side of the image
CROP_OVERHANG = 0.25  # of the crop's side that may hang over an edge: a constant place is a poor answer then
MIN_TARGET_RATIO = 0.1  # of the crop's side; a box thinner than that is not asked for
MIN_TARGET_SHARE = 0.9  # cut boxes pile up at the edges, and a model that is unsure would answer "at the edge"
ABSENT_RATIO = 0.25  # of grounding questions that ask for what is not there: with a tenth, rewards teach to invent
MAX_ALL_BOXES = 6
SPEAK_OF_CONTRAST = frozenset({"contrast", "caption"})
"""Forms of question whose answer says whether contrast agent was given."""


@dataclass(frozen=True)
class Draft:
    """Question and answer of a sample, before it is bound to its image."""

    form: str
    question: str
    answer: Answer
    boxes: tuple[Seen, ...] = ()
    facts: tuple[Fact, ...] = ()
    about: str | None = None


def records_of(split: str) -> tuple[ImageFacts, ...]:
    """Return the facts tables of a split.

    Raises:
        ValueError: there is no such split.
    """
    if split not in EMBEDDED_SPLITS:
        raise InputError(f"the embedded set has no split {split!r}: use one of {', '.join(EMBEDDED_SPLITS)}")
    if split in ("train", "test"):
        return tuple(r for r in load_facts() if r.split == split)
    return tuple(r for r in load_facts() if r.split == "train" and _part_of(r) == split)


def _part_of(record: ImageFacts) -> str:
    """Return the part of `train` that an image is in; of the slices every sixth block of eight is in `val`."""
    if record.source in VAL_SCANS:
        return "val_scans"
    is_block = record.slice_index is not None and record.slice_index // VAL_BLOCK % VAL_EVERY == VAL_PLACE
    return "val" if is_block and record.source == VAL_SOURCE else "fit"


@cache
def _slots(task: str, split: str) -> tuple[ImageFacts, ...]:
    """Return the images a task can use, each repeated so that drawing uniformly obeys the weights of the sources."""
    usable = [r for r in records_of(split) if r.source in SOURCE_WEIGHTS and _can(task, r)]
    present = sorted({r.source for r in usable})  # in another order the sum's last bit could move a rounded share
    total = sum(SOURCE_WEIGHTS[source] for source in present)
    slots: list[ImageFacts] = []
    for source in present:
        members = [r for r in usable if r.source == source]
        share = SOURCE_WEIGHTS[source] / total * NUM_SLOTS / len(members)
        slots += [r for r in members for _ in range(max(1, round(share)))]
    return tuple(slots)


@cache
def _pointing_slots(split: str) -> tuple[ImageFacts, ...]:
    """Return the slots of grounding whose whole image one box answers; each image is looked at once."""
    slots = _slots("grounding", split)
    pointing = {record_id for record_id, r in {r.id: r for r in slots}.items() if single_targets(look(r))}
    return tuple(r for r in slots if r.id in pointing)


def _can(task: str, record: ImageFacts) -> bool:
    """Return whether the whole image allows a task."""
    view = look(record)
    if task == "grounding":
        return bool(single_targets(view)) or 0 < len(view.with_name("nucleus")) <= MAX_ALL_BOXES
    if task == "report":
        return texts.report(view) is not None
    if task == "retrieval":
        return texts.layout(view) is not None
    return True


class EmbeddedTasks:
    """One task of one split of the embedded set, as a source for a mixture.

    Args:
        task: one of `EMBEDDED_TASKS`.
        split: train or test, a volume is in one of them only; or a part of train.
        crops: draw a random square window for every sample; otherwise show whole images.

    Raises:
        ValueError: an unknown task or split.
    """

    def __init__(self, task: str, split: str = "train", crops: bool = True) -> None:
        if task not in EMBEDDED_TASKS:
            raise InputError(f"the embedded set has no task {task!r}: use one of {', '.join(EMBEDDED_TASKS)}")
        self.task, self.split, self.crops = task, split, crops
        self.name = f"embedded:{task}"
        self.stream = f"{STREAM_PREFIX}{task}"
        self.root: Path = EMBEDDED_ROOT
        self._slots = _slots(task, split)

    def __len__(self) -> int:
        return len(self._slots)

    def record(self, index: int) -> ImageFacts:
        """Return the image of slot `index`."""
        return self._slots[index]

    def get(self, index: int, rng: Random) -> Sample:
        """Return a sample of image slot `index`; everything else is drawn from `rng`."""
        return self.make(self._slots[index], rng)

    def make(self, record: ImageFacts, rng: Random, *, plain_boxes: bool = False) -> Sample:
        """Return a sample of one image; arguments as `draft`."""
        return bind(self.task, *self.draft(record, rng, plain_boxes=plain_boxes))

    def draft(self, record: ImageFacts, rng: Random, *, plain_boxes: bool = False) -> tuple[Draft, View]:
        """Return what a sample of one image says, and the view it says it of.

        Args:
            record: the image.
            rng: draws window and question.
            plain_boxes: ask grounding questions for exactly one box only.
        """
        if self.task == "vqa":
            question = ask(record, lambda only: self._choose_view(record, rng, only), rng, crops=self.crops)
            return from_question(question), question.view
        for form in forms_of(self.task, rng, plain_boxes=plain_boxes):
            for attempt in range(MAX_ATTEMPTS if self.crops else 1):
                view = look(record) if attempt == MAX_ATTEMPTS - 1 else self._choose_view(record, rng)
                draft = draft_of(self.task, form, view, rng)
                if draft is not None:
                    return draft, view
        raise AssertionError(f"{record.id} allows no {self.task} sample, though it was listed")

    def _choose_view(self, record: ImageFacts, rng: Random, only: str | None = None) -> View:
        return choose_view(record, rng, only) if self.crops else look(record, only=only)


def choose_view(record: ImageFacts, rng: Random, only: str | None = None) -> View:
    """Return what a random square window of an image shows; `only` as for `look`."""
    return look(record, random_square_window((record.width, record.height), rng, *CROP_RATIOS, CROP_OVERHANG), only)


def forms_of(task: str, rng: Random, *, plain_boxes: bool) -> list[str]:
    """Draw the forms of a task in the order in which they are tried."""
    if task != "grounding":
        return [task]
    if plain_boxes:
        return ["one"]
    return ["absent", "one", "all"] if rng.random() < ABSENT_RATIO else ["one", "all"]


def draft_of(task: str, form: str, view: View, rng: Random) -> Draft | None:
    """Write one form of a task (other than vqa) from a view; None where the view does not allow it."""
    if task == "grounding":
        return _ground(form, view, rng)
    if task == "caption":
        text, facts = texts.caption(view)
    else:
        written = texts.report(view) if task == "report" else texts.layout(view)
        if written is None or not written[0]:
            return None
        text, facts = written
    kind = "report" if task == "report" else "open"
    return Draft(task, texts.PROMPTS[task], Answer(kind, text), facts=facts)


def from_question(question: Question) -> Draft:
    """Turn a question into the draft of a vqa sample."""
    facts: tuple[Fact, ...] = ()
    if question.about is not None and question.form in ("visible", "lesion"):
        facts = (Fact(question.about, "present" if question.answer.value == "yes" else "absent"),)
    return Draft(question.form, question.text, question.answer, facts=facts, about=question.about)


def single_targets(view: View) -> list[Seen]:
    """Return the structures that one box answers: nothing else of their name is in view, and they hang together."""
    return [
        s
        for s in view.seen
        if s.name not in view.partial
        and len(view.with_name(s.name)) == 1
        and s.name != "nucleus"
        and (s.structure.parts == 1 or s.name == "vertebra")
        and s.share >= MIN_TARGET_SHARE
        and _thinnest(s) >= MIN_TARGET_RATIO * min(view.size)
    ]


def _thinnest(seen: Seen) -> int:
    x0, y0, x1, y1 = seen.xyxy_px
    return min(x1 - x0, y1 - y0)


def _ground(form: str, view: View, rng: Random) -> Draft | None:
    if form == "one":
        single = sorted(single_targets(view), key=lambda s: s.name)
        return ask_where(rng.choice(single)) if single else None
    if form == "absent":
        names = absent_names(view)
        return ask_absent(rng.choice(names)) if names else None
    nuclei = view.with_name("nucleus")
    if not 0 < len(nuclei) <= MAX_ALL_BOXES:
        return None
    return Draft("all", "Locate all nuclei.", Answer("boxes"), nuclei, (Fact("nucleus", "present"),), "nucleus")


def ask_where(seen: Seen) -> Draft:
    """Ask for the box of a structure that a view shows."""
    facts = (Fact(seen.name, "present", side=seen.structure.side),)
    return Draft("one", f"Where is the {seen.name}?", Answer("boxes"), (seen,), facts, seen.name)


def absent_names(view: View) -> list[str]:
    """Return what may be asked for though a view does not show it: names that were looked for in its image."""
    if view.record.source == "nuclei":
        return []
    return [name for name in view.record.labelled if view.is_absent(name)]


def ask_absent(name: str) -> Draft:
    """Ask for the box of a structure that a view does not show: the answer is no box."""
    return Draft("absent", f"Where is the {name}?", Answer("boxes"), (), (Fact(name, "absent"),), name)


def image_of(view: View, forms: Iterable[str] = ()) -> ImageRef:
    """Return the picture that a view shows.

    Args:
        view: the view.
        forms: forms of what is said of it. The outlines are left out where one speaks of contrast agent, lest a tone
            curve put into the picture what the text denies.
    """
    record = view.record
    width, height = view.size
    return ImageRef(
        path=record.path,
        width=width,
        height=height,
        crop=None if view.is_whole else view.window,
        spacing_mm=record.spacing_mm,
        modality=record.modality,
        laterality_display="R" if record.plane else None,
        outlines=None if SPEAK_OF_CONTRAST.intersection(forms) else outlines_of(record),
    )


def where_of(view: View) -> str:
    """Name the window of a view, for the id of a sample."""
    return "whole" if view.is_whole else "-".join(str(v) for v in view.window)


def bind(task: str, draft: Draft, view: View) -> Sample:
    """Return the sample of a draft and the view it was written from."""
    record = view.record
    messages: tuple[Message, ...] = (
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": draft.question}]},
    )
    # The key that stored facts and results use for the form.
    provenance: dict[str, Any] = {"template": draft.form, "source": record.source, "package": record.package}
    if draft.about is not None:
        provenance["about"] = draft.about
    return Sample(
        id=f"{task}/{record.id}/{where_of(view)}/{draft.form}" + (f"/{draft.about}" if draft.about else ""),
        task=task,
        images=(image_of(view, (draft.form,)),),
        messages=messages,
        boxes=box_annotations(draft.boxes),
        answer=draft.answer,
        facts=draft.facts,
        split=record.split,
        group=record.group,
        licence=record.licence,
        provenance=provenance,
        root=EMBEDDED_ROOT,
    )


def box_annotations(shown: Iterable[Seen], image: int = 0) -> tuple[BoxAnnotation, ...]:
    """Return the boxes of structures as a view shows them, in its pixels; `image` is the view's index in the sample."""
    return tuple(
        BoxAnnotation(s.name, _floats(s.xyxy_px), image, source=s.structure.origin, code=s.structure.code)
        for s in shown
    )


def _floats(box: Window) -> tuple[float, float, float, float]:
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


def absent_samples(split: str = "test", n: int = 200, seed: int = 0) -> list[Sample]:
    """Return fixed grounding samples that ask, under random crops, for what the picture does not show.

    Args:
        split: train or test.
        n: samples wanted; as for `eval_samples` there may be fewer.
        seed: seed of crops and questions.
    """
    source = EmbeddedTasks("grounding", split)
    usable = [r for r in source._slots if r.source != "nuclei"]
    samples: dict[str, Sample] = {}
    for i in range(n):
        rng = Random(f"{seed}/absent/{split}/{i}")
        view = source._choose_view(usable[i * len(usable) // n], rng)
        draft = _ground("absent", view, rng)
        if draft is not None:
            sample = bind("grounding", draft, view)
            samples.setdefault(sample.id, sample)
    return list(samples.values())


def eval_samples(task: str, split: str = "test", crops: str = "fixed", n: int = 200, seed: int = 0) -> list[Sample]:
    """Return fixed samples to evaluate on; the same for the same arguments.

    Each sample has its own image and generator: the images share the samples as the weights of their sources
    say, in an order that mixes them. Grounding questions ask for exactly one box. Whole images allow few distinct
    samples, each of which is returned once: the list may be shorter than `n`.

    Args:
        task: one of `EMBEDDED_TASKS`.
        split: train or test.
        crops: `fixed` (seeded random crops) or `none` (whole images).
        n: samples wanted.
        seed: seed of crops and questions.
    """
    if crops not in ("fixed", "none"):
        raise InputError(f"crops={crops!r}: use 'fixed' or 'none'")
    source = EmbeddedTasks(task, split, crops=crops == "fixed")
    usable = source._slots if task != "grounding" else _pointing_slots(split)
    samples: dict[str, Sample] = {}
    for i in range(n):
        rng = Random(f"{seed}/{task}/{split}/{crops}/{i}")
        record = usable[i * len(usable) // n]
        sample = source.make(record, rng, plain_boxes=True)
        samples.setdefault(sample.id, sample)
    mixed = list(samples.values())
    Random(f"{seed}/{task}/order").shuffle(mixed)
    return mixed

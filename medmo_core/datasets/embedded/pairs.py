"""Questions about two views of one volume: where a structure is in the other view, and what only one view shows.

Each view is a random window of a slice; the second slice is the first one or a near one of the same volume, so a pair
never crosses two splits. They exercise what two-view and prior-and-current studies need (boxes of one image in the
question, boxes of several in the answer); no time lies between the two, and no text says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from ...data.records.sample import Answer, BoxAnnotation, Message, Sample
from .facts import EMBEDDED_ROOT, ImageFacts, Seen, View, load_facts, look
from .tasks import (
    MAX_ATTEMPTS,
    STREAM_PREFIX,
    EmbeddedTasks,
    box_annotations,
    choose_view,
    image_of,
    single_targets,
    where_of,
)
from .texts import listed

FORM_WEIGHTS = {"track": 0.55, "gone": 0.05, "new": 0.2, "either": 0.2}
MAX_STEPS = 2  # slices between the two views, in the order of the set
MAX_ASKED = 4
NOTHING_RATIO = 0.1  # of questions after differences that have none
ONE_SIDED_RATIO = 0.2  # of pairs kept whose differences all lie in one view: there are five times as many of them
SECOND = 1  # index of the second image: what is asked for lies in it unless the answer says otherwise


class Pair(NamedTuple):
    """Two views of one volume, with the structures that one box answers in each, by name."""

    views: tuple[View, View]
    targets: tuple[dict[str, Seen], dict[str, Seen]]

    def in_both(self) -> list[str]:
        """Names that one box answers in either view, sorted."""
        return sorted(self.targets[0].keys() & self.targets[1].keys())

    def only_in(self, image: int) -> list[str]:
        """Names that one box answers in one view and that the other one certainly does not show, sorted."""
        return sorted(name for name in self.targets[image] if self.views[1 - image].is_absent(name))

    def boxes(self, image: int, names: Sequence[str]) -> tuple[BoxAnnotation, ...]:
        """Boxes of the named structures in one view."""
        return box_annotations((self.targets[image][name] for name in names), image)


class PairDraft(NamedTuple):
    """Question and answer about a pair; `given` boxes stand in the question, between its parts."""

    question: tuple[str, ...]
    given: tuple[BoxAnnotation, ...]
    sought: tuple[BoxAnnotation, ...]
    about: tuple[str, ...]


def track(pair: Pair, rng: Random) -> PairDraft | None:
    """Ask for a structure of the first view in the second."""
    names = pair.in_both()
    if not names:
        return None
    name = rng.choice(names)
    return _point_from(pair, name, pair.boxes(1, [name]))


def gone(pair: Pair, rng: Random) -> PairDraft | None:
    """Ask the same of a structure that the second view does not show."""
    names = pair.only_in(0)
    return _point_from(pair, rng.choice(names), ()) if names else None


def _point_from(pair: Pair, name: str, sought: tuple[BoxAnnotation, ...]) -> PairDraft:
    question = (f"Image 1 shows the {name} at ", ". Where is it in image 2?")
    return PairDraft(question, pair.boxes(0, [name]), sought, (name,))


def new(pair: Pair, rng: Random) -> PairDraft | None:
    """Ask which of some structures only the second view shows."""
    asked = _asked([pair.only_in(1)], [*pair.in_both(), *pair.only_in(0)], rng)
    if asked is None:
        return None
    found = [name for name in pair.only_in(1) if name in asked]
    question = f"Which of the {listed(asked)} does image 2 show that image 1 does not?"
    return PairDraft((question,), (), pair.boxes(1, found), asked)


def either(pair: Pair, rng: Random) -> PairDraft | None:
    """Ask which of some structures one view shows and the other does not, whichever that is."""
    sides = [pair.only_in(0), pair.only_in(1)]
    if not all(sides) and rng.random() >= ONE_SIDED_RATIO:
        return None
    asked = _asked(sides, pair.in_both(), rng)
    if asked is None:
        return None
    sought = [box for image in (0, 1) for box in pair.boxes(image, [n for n in pair.only_in(image) if n in asked])]
    question = f"Which of the {listed(asked)} does only one of the two images show?"
    return PairDraft((question,), (), tuple(sought), asked)


def _asked(differences: Sequence[Sequence[str]], others: Sequence[str], rng: Random) -> tuple[str, ...] | None:
    """Draw at least two names to ask about, differences (up to two of each kind, rarely none) among others, or None."""
    chosen = [name for kind in differences if kind for name in rng.sample(kind, rng.randint(1, min(2, len(kind))))]
    if rng.random() < NOTHING_RATIO:
        chosen = []
    elif not chosen:
        return None
    rest = rng.sample(others, min(len(others), MAX_ASKED - len(chosen)))
    names = [*chosen, *rest]
    return tuple(rng.sample(names, len(names))) if len(names) > 1 else None


FORMS: dict[str, Callable[[Pair, Random], PairDraft | None]] = {
    "track": track,
    "gone": gone,
    "new": new,
    "either": either,
}


class Pairs:
    """Questions about pairs of views, as a source for a mixture.

    Args:
        split: train or test; a volume is in one of them only.
        crops: draw a random square window for every view; otherwise show whole images.
    """

    def __init__(self, split: str = "train", crops: bool = True) -> None:
        self.name = "embedded:pair"
        self.stream = f"{STREAM_PREFIX}pair"
        self.root: Path = EMBEDDED_ROOT
        self.split, self.crops = split, crops
        grounding = EmbeddedTasks("grounding", split)
        records = [grounding.record(index) for index in range(len(grounding))]
        self._slots = tuple(record for record in records if single_targets(look(record)))

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, index: int, rng: Random) -> Sample:
        """Return a question about an image and a near one; everything but the image is drawn from `rng`."""
        record = self._slots[index]
        left = dict(FORM_WEIGHTS)
        while left:
            form = rng.choices(list(left), list(left.values()))[0]
            del left[form]
            for _ in range(MAX_ATTEMPTS):
                pair = self._choose_pair(record, rng)
                draft = FORMS[form](pair, rng)
                if draft is not None:
                    return bind_pair(form, draft, pair)
        # The whole image beside itself always allows the first form.
        pair = pair_of(look(record), look(record))
        draft = track(pair, rng)
        assert draft is not None, f"{record.id} allows no question about a pair, though it was listed"
        return bind_pair("track", draft, pair)

    def _choose_pair(self, record: ImageFacts, rng: Random) -> Pair:
        near = neighbours(record)
        second = near[rng.randrange(len(near))]
        first_view, second_view = (choose_view(r, rng) if self.crops else look(r) for r in (record, second))
        return pair_of(first_view, second_view)


@cache
def neighbours(record: ImageFacts) -> tuple[ImageFacts, ...]:
    """Return the image itself and those of its volume at most `MAX_STEPS` away."""
    volume = [r for r in load_facts() if r.group == record.group]
    place = volume.index(record)
    return tuple(volume[max(0, place - MAX_STEPS) : place + MAX_STEPS + 1])


def pair_of(first: View, second: View) -> Pair:
    """Return two views as a pair."""
    one, other = ({s.name: s for s in single_targets(view)} for view in (first, second))
    return Pair((first, second), (one, other))


def bind_pair(form: str, draft: PairDraft, pair: Pair) -> Sample:
    """Return the sample of a draft and the pair it was written from; the given boxes come first."""
    first, second = pair.views
    content: list[dict[str, object]] = [{"type": "image"}, {"type": "image"}]
    for number, words in enumerate(draft.question):
        if number:
            content.append({"type": "boxes", "boxes": list(range(len(draft.given)))})
        content.append({"type": "text", "text": words})
    messages: tuple[Message, ...] = ({"role": "user", "content": content},)
    record = first.record
    places = "+".join(f"{view.record.id}/{where_of(view)}" for view in pair.views)
    return Sample(
        id=f"pair/{places}/{form}/{'+'.join(draft.about)}",
        task="grounding",
        images=(image_of(first), image_of(second)),
        messages=messages,
        boxes=(*draft.given, *draft.sought),
        answer=Answer("boxes", image=SECOND),
        split=record.split,
        group=record.group,
        licence=record.licence,
        provenance={
            "template": f"pair/{form}",
            "source": record.source,
            "package": record.package,
            "about": list(draft.about),
            "views": "two windows of one volume, no time between them",
        },
        root=EMBEDDED_ROOT,
    )


def eval_pairs(split: str = "test", n: int = 200, seed: int = 0) -> list[Sample]:
    """Return fixed questions about pairs under random crops to evaluate on; the same for the same arguments.

    Args:
        split: train or test.
        n: samples wanted; there may be fewer, since each is returned once.
        seed: seed of crops and questions.
    """
    source = Pairs(split)
    drawn = (source.get(i * len(source) // n, Random(f"{seed}/pair/{split}/{i}")) for i in range(n))
    samples = list({sample.id: sample for sample in drawn}.values())
    Random(f"{seed}/pair/order").shuffle(samples)
    return samples

"""Questions with short answers, written from what views of an image show.

Most are paired: of one image, a view where the answer is yes (or left, or upper) and one where it is no are found
before the question is asked, and chance decides which is shown. So neither the words of the question nor the image it
is asked of give away the answer; only the view does. The rest are facts of the image (modality, contrast, plane) or
of the patient (side).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ...data.records.sample import Answer
from .facts import ImageFacts, View, look, names_in_group
from .texts import is_lesion

MARGIN_RATIO = 0.1  # a centre nearer to the midline belongs to no half
MIN_NAMES = 3  # structures a volume must have before one of them is asked for
MANY_NUCLEI = 5
LESION_YES_RATIO = 0.8  # on slices with a lesion; those without one always say no
PAIR_TRIALS = 24  # views looked at to find both answers
NAME_TRIALS = 4
SIDES = ("left", "right")

ChooseView = Callable[[str | None], View]
"""Returns the next view of an image, looking for one name only or (None) for everything."""


@dataclass(frozen=True)
class Question:
    """A question with its answer, its form, the view it is asked of and the structure it is about."""

    form: str
    text: str
    answer: Answer
    view: View
    about: str | None = None


@dataclass(frozen=True)
class Paired:
    """A question with two answers, each of which some view of the image must give.

    Attributes:
        text: the question, with the structure's name in place of {}.
        answers: the one where `holds` is true, then the other.
        names: structures of an image that may be asked for.
        holds: whether a view gives the first answer or the second; None: neither for certain.
        first_ratio: how often the first answer is chosen.
        needs_both: ask only where both answers can be shown; where images of both kinds exist that is not needed.
    """

    text: str
    answers: tuple[str, str]
    names: Callable[[View, bool], tuple[str, ...]]
    holds: Callable[[View, str], bool | None]
    first_ratio: float = 0.5
    needs_both: bool = True


def organs(view: View, whole_only: bool) -> tuple[str, ...]:
    """Return the organs to ask for: those the image shows, or where there are no crops those of its volume."""
    group = tuple(n for n in names_in_group(view.record.group) if not is_lesion(n))
    if len(group) < MIN_NAMES:
        return ()
    return group if whole_only else tuple(n for n in group if n in view.visible_names)


def lesions(view: View, whole_only: bool) -> tuple[str, ...]:
    """Return the lesion that was looked for."""
    return tuple(name for name in view.record.labelled if is_lesion(name))


def singles(view: View, whole_only: bool) -> tuple[str, ...]:
    """Return structures of which the image shows one, in one piece."""
    found = [s for s in view.seen if len(view.with_name(s.name)) == 1 and s.structure.parts == 1]
    return tuple(sorted(s.name for s in found if s.name not in view.partial))


def is_visible(view: View, name: str) -> bool | None:
    """Return whether a structure is visible; None where too little of it is."""
    if name in view.visible_names:
        return True
    return False if view.is_absent(name) else None


def is_before(axis: int) -> Callable[[View, str], bool | None]:
    """Return a test whether a structure's centre is left of (axis 0) or above (axis 1) the middle of the view."""

    def holds(view: View, name: str) -> bool | None:
        found = view.with_name(name)
        if len(found) != 1 or name in view.partial:
            return None
        centre = view.centre(found[0])[axis]
        return None if abs(centre - 0.5) < MARGIN_RATIO else centre < 0.5

    return holds


PAIRED: dict[str, Paired] = {
    "visible": Paired("Is the {} visible?", ("yes", "no"), organs, is_visible),
    "image_half": Paired("Is the {} in the left or right half?", SIDES, singles, is_before(0)),
    "image_height": Paired("Is the {} in the upper or lower half?", ("upper", "lower"), singles, is_before(1)),
    "lesion": Paired("Is a lesion visible?", ("yes", "no"), lesions, is_visible, LESION_YES_RATIO, needs_both=False),
}


def ask_paired(form: str, record: ImageFacts, choose_view: ChooseView, rng: Random, *, crops: bool) -> Question | None:
    """Ask one of `PAIRED` of an image; None where no structure has both answers."""
    pair = PAIRED[form]
    names = list(pair.names(look(record), not crops))
    rng.shuffle(names)
    wanted = rng.random() < pair.first_ratio
    for name in names[:NAME_TRIALS] if crops else _wanted_first(names, pair, look(record), wanted):
        views: dict[bool, View] = {}
        for _ in range(PAIR_TRIALS if crops else 1):
            view = choose_view(name)
            value = pair.holds(view, name)
            if value is not None:
                views.setdefault(value, view)
            if len(views) == 2:
                break
        if not views or (crops and pair.needs_both and len(views) < 2):
            continue
        value = wanted if wanted in views else next(iter(views))
        text = pair.answers[0] if value else pair.answers[1]
        kind = "yesno" if text in ("yes", "no") else "choice"
        answer = Answer(kind, text, () if kind == "yesno" else pair.answers)
        return Question(form, pair.text.format(name), answer, views[value], name)
    return None


def _wanted_first(names: list[str], pair: Paired, view: View, wanted: bool) -> list[str]:
    """Order names so that those with the wanted answer come first; whole images have one answer per name."""
    return sorted(names, key=lambda name: pair.holds(view, name) is not wanted)


def patient_side(view: View, rng: Random) -> Question | None:
    """Ask for the patient's side of a structure whose name does not say it."""
    side = rng.choice(SIDES)
    names = sorted({s.name for s in view.seen if s.structure.side == side and not s.name.startswith(SIDES)})
    if not names:
        return None
    name = rng.choice(names)
    text = f"On which side of the patient is the {name}?"
    return Question("patient_side", text, Answer("choice", side, SIDES), view, name)


def modality(view: View, rng: Random) -> Question | None:
    """Ask how the image was taken."""
    return Question("modality", "Which imaging modality is this?", Answer("open", view.record.modality), view)


def contrast(view: View, rng: Random) -> Question | None:
    """Ask whether contrast agent was given, where that is known."""
    value = {"given": "yes", "none": "no"}.get(view.record.contrast or "")
    if value is None:
        return None
    return Question("contrast", "Was contrast agent given?", Answer("yesno", value), view)


def plane(view: View, rng: Random) -> Question | None:
    """Ask for the plane of a slice; all volumes of the set are axial."""
    if view.record.plane is None:
        return None
    return Question("plane", "Which plane is shown?", Answer("open", view.record.plane), view)


def many_nuclei(view: View, rng: Random) -> Question | None:
    """Ask whether there are more than five nuclei, where what is cut off cannot change the answer."""
    count = len(view.with_name("nucleus"))
    many = count > MANY_NUCLEI
    if not count or ("nucleus" in view.partial and not many):
        return None
    answer = Answer("yesno", "yes" if many else "no")
    return Question("many_nuclei", "Are there more than five nuclei?", answer, view, "nucleus")


PLAIN: dict[str, Callable[[View, Random], Question | None]] = {
    "patient_side": patient_side,
    "modality": modality,
    "contrast": contrast,
    "plane": plane,
    "many_nuclei": many_nuclei,
}

FORM_WEIGHTS = {
    "visible": 0.40,
    "image_half": 0.20,
    "image_height": 0.16,
    "lesion": 0.10,
    "patient_side": 0.05,
    "modality": 0.04,
    "contrast": 0.04,
    "plane": 0.01,
    "many_nuclei": 0.02,
}
"""Form -> how often it is tried first."""


def ask(record: ImageFacts, choose_view: ChooseView, rng: Random, *, crops: bool) -> Question:
    """Ask something of an image.

    Args:
        record: the image.
        choose_view: function that makes the next view of it: a random crop, or the whole image every time.
        rng: generator that chooses form, structure and answer.
        crops: whether `choose_view` crops.
    """
    left = dict(FORM_WEIGHTS)
    while left:
        form = rng.choices(list(left), list(left.values()))[0]
        del left[form]
        if form in PAIRED:
            question = ask_paired(form, record, choose_view, rng, crops=crops)
        else:
            question = PLAIN[form](choose_view(None), rng)
        if question is not None:
            return question
    raise AssertionError("the modality can be asked of any image")

"""Questions with short answers, written from what a view shows: one function per template.

Each returns a question whose answer follows from the masks, or None where the view does not allow it. `wanted` asks for
one of two answers (yes, left, upper, the first-named), so that answers come out balanced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

from ..data.record import Answer
from .facts_table import View, load_facts, names_in_group
from .facts_text import is_lesion

MARGIN_RATIO = 0.08  # a centre nearer to the midline belongs to no half
MIN_NAMES = 3  # structures a volume must have before one of them is asked for
LARGER_RATIO = 2.0
MANY_NUCLEI = 5
SIDES = ("left", "right")


@dataclass(frozen=True)
class Question:
    """A question, its answer, the template it was written from and the structure it is about."""

    template: str
    text: str
    answer: Answer
    about: str | None = None


def yes_no(template: str, text: str, value: bool, about: str | None = None) -> Question:
    """Return a question that is answered yes or no."""
    return Question(template, text, Answer("yesno", "yes" if value else "no"), about)


def visible(view: View, rng: Random, wanted: bool) -> Question | None:
    """Ask whether an organ of the same volume is in view; rare answers of a name are drawn more often."""
    group = tuple(n for n in names_in_group(view.record.group) if not is_lesion(n))
    if len(group) < MIN_NAMES:
        return None
    names = [n for n in group if (n in view.visible_names if wanted else view.is_absent(n))]
    if not names:
        return None
    weights = [_rarity(view.record.group, name, wanted) for name in names]
    name = rng.choices(names, weights)[0]
    return yes_no("visible", f"Is the {name} visible?", wanted, name)


@cache
def _rarity(group: str, name: str, wanted: bool) -> float:
    """Return how rarely images of a volume show (or lack) a name, so that each name has both answers about as often."""
    records = [r for r in load_facts() if r.group == group]
    share = sum(any(s.name == name for s in r.structures) for r in records) / len(records)
    return 1 / ((share if wanted else 1 - share) + 0.1)


def image_half(view: View, rng: Random, wanted: bool) -> Question | None:
    """Ask for the half of the picture, left or right, that the centre of a structure lies in."""
    return _half(view, rng, wanted, axis=0, words=SIDES, template="image_half")


def image_height(view: View, rng: Random, wanted: bool) -> Question | None:
    """Ask for the half of the picture, upper or lower, that the centre of a structure lies in."""
    return _half(view, rng, wanted, axis=1, words=("upper", "lower"), template="image_height")


def _half(
    view: View, rng: Random, wanted: bool, *, axis: int, words: tuple[str, str], template: str
) -> Question | None:
    fitting = [
        s.name
        for s in view.seen
        if len(view.with_name(s.name)) == 1
        and s.name not in view.partial
        and s.structure.parts == 1
        and (view.centre(s)[axis] < 0.5 - MARGIN_RATIO if wanted else view.centre(s)[axis] > 0.5 + MARGIN_RATIO)
    ]
    if not fitting:
        return None
    name = rng.choice(sorted(fitting))
    text = f"Is the {name} in the {words[0]} or {words[1]} half of the image?"
    return Question(template, text, Answer("choice", words[0] if wanted else words[1], words), name)


def patient_side(view: View, rng: Random, wanted: bool) -> Question | None:
    """Ask for the patient's side of a structure whose name does not say it."""
    side = SIDES[0] if wanted else SIDES[1]
    names = sorted({s.name for s in view.seen if s.structure.side == side and not s.name.startswith(side)})
    if not names:
        return None
    name = rng.choice(names)
    return Question("patient_side", f"On which side of the patient is the {name}?", Answer("choice", side, SIDES), name)


def lesion(view: View, rng: Random, wanted: bool) -> Question | None:
    """Ask whether a lesion is annotated in view; no proof of health where none is."""
    names = [name for name in view.record.labelled if is_lesion(name)]
    if not names:
        return None
    holds = names[0] in view.visible_names if wanted else view.is_absent(names[0])
    return yes_no("lesion", "Is a lesion visible?", wanted, names[0]) if holds else None


def larger(view: View, rng: Random, wanted: bool) -> Question | None:
    """Ask which of two structures that are wholly in view is larger, by at least two times."""
    whole = sorted((s for s in view.seen if s.share == 1), key=lambda s: s.name)
    pairs = [(a, b) for a in whole for b in whole if a.area_px >= LARGER_RATIO * b.area_px and a.name != b.name]
    if not pairs:
        return None
    big, small = rng.choice(pairs)
    names = (big.name, small.name) if wanted else (small.name, big.name)
    text = f"Which is larger: the {names[0]} or the {names[1]}?"
    return Question("larger", text, Answer("choice", big.name, names), big.name)


def modality(view: View, rng: Random, wanted: bool) -> Question | None:
    """Ask how the image was taken."""
    return Question("modality", "Which imaging modality is this?", Answer("open", view.record.modality))


def contrast(view: View, rng: Random, wanted: bool) -> Question | None:
    """Ask whether contrast agent was given, where that is known."""
    given = {"given": True, "none": False}.get(view.record.contrast or "")
    return None if given is None or given != wanted else yes_no("contrast", "Was contrast agent given?", given)


def plane(view: View, rng: Random, wanted: bool) -> Question | None:
    """Ask for the plane of a slice; all volumes of the set are axial."""
    if view.record.plane is None:
        return None
    return Question("plane", "Which plane is shown?", Answer("open", view.record.plane))


def many_nuclei(view: View, rng: Random, wanted: bool) -> Question | None:
    """Ask whether there are more than five nuclei, where no count near five makes the answer doubtful."""
    count = len(view.with_name("nucleus"))
    cut = "nucleus" in view.partial
    holds = count > MANY_NUCLEI if wanted else 0 < count <= MANY_NUCLEI and not cut
    return yes_no("many_nuclei", "Are there more than five nuclei?", wanted, "nucleus") if holds else None


QUESTIONS: dict[str, tuple[float, Callable[[View, Random, bool], Question | None]]] = {
    "visible": (0.40, visible),
    "image_half": (0.18, image_half),
    "image_height": (0.12, image_height),
    "patient_side": (0.06, patient_side),
    "lesion": (0.08, lesion),
    "larger": (0.06, larger),
    "modality": (0.04, modality),
    "contrast": (0.04, contrast),
    "plane": (0.01, plane),
    "many_nuclei": (0.03, many_nuclei),
}
"""Template -> (how often it is tried first, the function that writes it)."""

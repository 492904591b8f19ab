"""Gallery of held-out pictures, chosen by a rule: the best answers, the middle ones and some of the worst third."""

from collections.abc import Sequence
from dataclasses import replace

from ..evaluation.results import Evaluation
from .evaluation_page import picture
from .report import Picture

EACH = 3
"""Pictures of every group."""
RULE = (
    f"Chosen by rule, not by hand: of all questions about something that is there, ranked by IoU, the {EACH} best, the "
    f"{EACH} in the middle, and {EACH} spread over the worst third."
)


def ranked_pictures(result: Evaluation) -> list[Picture]:
    """Draw true and predicted boxes of the best, the middle and of the worst third of the one-image answers.

    Answers of equal IoU are ranked by the sample's id. Of few answers none is shown twice.
    """
    pairs = zip(result.samples.get("grounding", ()), result.predictions.get("grounding", ()), strict=True)
    scored = [(s, p) for s, p in pairs if len(s.images) == 1 and "grounding_iou" in p.scores]
    scored.sort(key=lambda pair: (-pair[1].scores["grounding_iou"], pair[0].id))
    shown: list[Picture] = []
    used: set[int] = set()
    for group, places in _groups(len(scored)).items():
        for place in (place for place in places if place not in used):
            used.add(place)
            shown.append(replace(picture(*scored[place]), group=f"{group} ({place + 1} of {len(scored)})"))
    return shown


def _groups(count: int) -> dict[str, Sequence[int]]:
    """Return the places of each group in a ranking of so many."""
    each, third = min(EACH, count), max(1, count // 3)
    middle = max(0, (count - each) // 2)
    step = max(1, third // each) if each else 1
    worst = range(count - 1, max(-1, count - 1 - step * each), -step)
    return {"best": range(each), "middle": range(middle, middle + each), "worst third": sorted(worst)}

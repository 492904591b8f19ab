"""Reward `factuality`: a text that states the sample's facts and contradicts none."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..metrics.facts import fact_score
from ..metrics.text import completion_text, final_answer
from .example import Example

if TYPE_CHECKING:
    from ..data.record import Fact

TASKS = ("caption", "report")


def factuality_reward(
    completions: Sequence[Any], *, task: Sequence[str], facts: Sequence[Sequence["Fact"]], **columns: Any
) -> list[float | None]:
    """Score the F1 of the facts a text names (finding, present or absent, side), less a price per contradiction.

    score = max(0, F1 - contradictions / facts), by the protocol of `medmo_core.metrics.facts`.

    Args:
        completions: texts, or chats that end with one.
        task: of each sample.
        facts: of each sample.
        columns: not used.

    Returns:
        Scores in [0, 1], or None where the task is neither caption nor report, or the sample has no facts. A text that
        names no fact, an empty or malformed one among them, scores 0.
    """
    scores: list[float | None] = []
    for text, kind, known in zip(completions, task, facts, strict=True):
        if kind not in TASKS or not known:
            scores.append(None)
            continue
        counts = fact_score(final_answer(completion_text(text)), known)
        scores.append(max(0.0, counts.f1 - counts.contradictions / counts.num_facts))
    return scores


def _fact(finding: str, status: str = "present", side: str | None = None, site: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(finding=finding, status=status, side=side, site=site)


_ABDOMEN = (_fact("liver"), _fact("kidney", side="left"), _fact("spleen", "absent"))
_BREAST = (_fact("lesion", side="left", site="breast"),)


def _example(
    about: str, completion: Any, score: float | None, facts: Sequence[Any] = _ABDOMEN, task: str = "report"
) -> Example:
    return Example(about, completion, score, {"task": task, "facts": facts})


EXAMPLES = (
    _example("all facts", "The liver and the left kidney are visible. The spleen is not visible.", 1.0),
    _example("other words for it", "Liver and left kidney, without spleen.", 1.0),
    _example("one fact of three", "The liver is visible.", 0.5),
    _example("an invented finding", "Liver, left kidney and a lung, no spleen.", 6 / 7),
    _example("a denial contradicts", "The liver is absent. Left kidney. No spleen is seen.", 2 / 3 - 1 / 3),
    _example("the wrong side contradicts", "Liver and right kidney, no spleen.", 2 / 3 - 1 / 3),
    _example("no side where there is one", "Liver and a kidney, no spleen.", 2 / 3),
    _example("denying what nobody asserted is free", "Liver, left kidney, no spleen, no stomach.", 1.0),
    _example("said and denied is not said", "The liver is visible. No liver is seen.", 0.0),
    _example("repetition earns nothing", "Liver. Liver. Liver.", 0.5),
    _example("the site is no finding of its own", "There is a lesion in the left breast.", 1.0, _BREAST),
    _example("the site's side is the finding's", "There is a lesion in the right breast.", 0.0, _BREAST),
    _example("nothing named", "A picture.", 0.0),
    _example("an empty text", "", 0.0),
    _example("no text at all", None, 0.0),
    _example("a sample without facts", "The liver is visible.", None, ()),
    _example("another task", "yes", None, task="vqa"),
)

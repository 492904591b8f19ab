"""Reward `factuality`: a text that states the sample's facts, or a reference report's, and contradicts none."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..metrics.facts import fact_score, reference_score
from ..metrics.text import completion_text, final_answer
from .example import Example
from .plain import reads_plain

if TYPE_CHECKING:
    from ..data.records.sample import Answer, Fact

APPLIES_TO = ("caption", "report")


@reads_plain
def factuality_reward(
    completions: Sequence[Any],
    *,
    task: Sequence[str],
    facts: Sequence[Sequence["Fact"]],
    answer: Sequence["Answer | None"] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Score the F1 of the facts a text names (finding, status, side, place, size), less a price per contradiction.

    score = max(0, F1 - contradictions / facts), by the protocol of `medmo_core.metrics.facts`. Where a sample has no
    facts and its answer is a reference report, the facts are the findings that report claims.

    Args:
        completions: texts, or chats that end with one.
        task: task of each sample.
        facts: facts of each sample.
        answer: the true answers; of type report: the reference.
        columns: not used.

    Returns:
        Scores in [0, 1], or None where the task is neither caption nor report, or there are neither facts nor a
        reference that claims a finding. A text that names no fact, an empty or malformed one among them, scores 0.
    """
    references = [None] * len(completions) if answer is None else answer
    scores: list[float | None] = []
    for completion, kind, known, truth in zip(completions, task, facts, references, strict=True):
        text = final_answer(completion_text(completion))
        if kind not in APPLIES_TO:
            counts = None
        elif known:
            counts = fact_score(text, known)
        else:
            counts = reference_score(text, _reference(truth))
        if counts is None or not counts.num_facts:
            scores.append(None)
        else:
            scores.append(max(0.0, counts.f1 - counts.contradictions / counts.num_facts))
    return scores


def _reference(answer: "Answer | None") -> str:
    return str(answer.value or "") if answer is not None and answer.type == "report" else ""


def _fact(
    finding: str, status: str = "present", side: str | None = None, site: str | None = None, size: float | None = None
) -> SimpleNamespace:
    return SimpleNamespace(finding=finding, status=status, side=side, site=site, size_mm=size)


_ABDOMEN = (_fact("liver"), _fact("kidney", side="left"), _fact("spleen", "absent"))
_BREAST = (_fact("lesion", side="left", site="breast"),)
_SIZED = (_fact("nodule", side="right", site="upper lobe", size=8.0),)
_REFERENCE = "Indication: pneumonia? Findings: The heart is enlarged. Small left pleural effusion, no pneumothorax."


def _example(
    about: str,
    completion: Any,
    score: float | None,
    facts: Sequence[Any] = _ABDOMEN,
    task: str = "report",
    reference: str | None = None,
) -> Example:
    answer = SimpleNamespace(type="report", value=reference, choices=())
    return Example(about, completion, score, {"task": task, "facts": facts, "answer": answer})


def _against(about: str, completion: Any, score: float | None, reference: str = _REFERENCE) -> Example:
    return _example(about, completion, score, (), reference=reference)


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
    _example("the site is not a finding", "There is a lesion in the left breast.", 1.0, _BREAST),
    _example("the site's side is the finding's", "There is a lesion in the right breast.", 0.0, _BREAST),
    _example("side, place and size", "An 8 mm nodule in the right upper lobe.", 1.0, _SIZED),
    _example("a size within a fifth", "Right apical nodule measuring 9 mm.", 1.0, _SIZED),
    _example("another size", "A 2 cm nodule in the right upper lobe.", 0.0, _SIZED),
    _example("another place", "An 8 mm nodule at the right base.", 0.0, _SIZED),
    _against("a reference in other words", "Cardiomegaly with a small left effusion. No pneumothorax.", 1.0),
    _against("what the reference denies", "Cardiomegaly, left pleural effusion and a pneumothorax.", 2 / 3 - 1 / 3),
    _against("half of the reference", "Enlarged cardiac silhouette.", 0.5),
    _against("what the reference does not know", "Heart enlarged, left effusion, no pneumothorax. A scar.", 6 / 7),
    _against("uncertain is not present", "Possible cardiomegaly. Left effusion, no pneumothorax.", 2 / 3 - 1 / 3),
    _against("a reference that claims nothing", "The heart is enlarged.", None, "Two views of the chest."),
    _example("nothing named", "A picture.", 0.0),
    _example("an empty text", "", 0.0),
    _example("no text at all", None, 0.0),
    _example("a sample without facts", "The liver is visible.", None, ()),
    _example("another task", "yes", None, task="vqa"),
)

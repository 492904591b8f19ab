"""How well the claims of a text agree with a sample's facts.

Protocol. Claims are read as `claims.py` states, with the findings of the facts added to the lexicon. A claim

- hits a fact of the same finding with the same status and side; a fact without a side takes any;
- contradicts where the facts know the finding with another status on that side, or present on the other side only;
- is vague when it names no side where the facts have one: it counts as a claim, and hits nothing;
- is unsupported when it says present (or uncertain) of a finding the facts do not mention. It is not counted when it
  says absent, or when the finding is the site of a fact.

F1 = 2 hits / (counted claims + facts). A fact that one claim hits and another denies is not hit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .claims import ABSENT, PRESENT, Claim, canonical, read_claims, sides_of
from .lexicon import UNPAIRED
from .text import completion_text

if TYPE_CHECKING:
    from ..data.record import Fact


@dataclass(frozen=True)
class FactScore:
    """Counts of one text against one sample's facts.

    Attributes:
        hits: facts that are hit.
        contradictions: claims that contradict a fact.
        num_claims: claims that count.
        num_facts: facts there are.
    """

    hits: int
    contradictions: int
    num_claims: int
    num_facts: int

    @property
    def f1(self) -> float:
        """2 hits / (claims + facts); 1 where there is neither."""
        total = self.num_claims + self.num_facts
        return 2 * self.hits / total if total else 1.0


def report_fact_f1(text: str, facts: Sequence["Fact"]) -> float:
    """Return the F1 of the facts a text states; the module's docstring states the protocol."""
    return fact_score(text, facts).f1


def fact_claims(facts: Sequence["Fact"]) -> set[Claim]:
    """Return facts as claims; a fact on both sides is two, one of an unpaired organ has none."""
    truth: set[Claim] = set()
    for fact in facts:
        finding, named_sides = canonical(fact.finding)
        sides = () if finding in UNPAIRED else sides_of(fact.side) or named_sides
        for side in sides or ("",):
            truth.add(Claim(finding, fact.status or PRESENT, side))
    return truth


def fact_score(text: str, facts: Sequence["Fact"]) -> FactScore:
    """Count a text's claims against a sample's facts; a text that is not a string claims nothing."""
    truth = fact_claims(facts)
    sites = {canonical(fact.site)[0] for fact in facts if fact.site} - {fact.finding for fact in truth}
    claims = read_claims(completion_text(text), {fact.finding for fact in truth})
    hit: set[Claim] = set()
    spoiled: set[Claim] = set()
    num_hitting = contradictions = others = 0
    for claim in claims:
        known = [fact for fact in truth if fact.finding == claim.finding]
        if not known:
            others += claim.status != ABSENT and claim.finding not in sites
            continue
        agreeing = [f for f in known if f.status == claim.status and f.side in ("", claim.side)]
        against = _contradicted(claim, known)
        if agreeing:
            hit.update(agreeing)
            num_hitting += 1
        elif against:
            spoiled.update(fact for fact in against if fact.status != claim.status)
            contradictions += 1
        elif claim.status != ABSENT:
            others += 1
    hits = min(len(hit - spoiled), num_hitting)
    return FactScore(hits, contradictions, num_hitting + contradictions + others, len(truth))


def _contradicted(claim: Claim, known: list[Claim]) -> list[Claim]:
    """Return the facts of the claim's finding that rule it out."""
    same_side = [f for f in known if "" in (f.side, claim.side) or f.side == claim.side]
    if same_side:
        # Without a side, "a kidney is visible" stands as long as one is.
        return [] if any(f.status == claim.status for f in same_side) else same_side
    return known if claim.status == PRESENT and all(f.status == PRESENT for f in known) else []

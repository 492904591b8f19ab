"""Agreement of the claims of a text with a sample's facts, or with a reference report.

Claims are read by `medmo_core.findings`, with the findings of the facts added to its words; a reference report's facts
are the findings it claims, read by the same reader. A claim

- hits a fact of the same finding with the same status and side, in a place and of a size that agree. A fact without a
  side takes any; place and size are compared where both name one: places agree when they can be the same
  (`findings.sites_agree`), sizes within 2 mm or 20 % of the true one. A kind of a finding is that finding
  ("calcified granuloma" hits "granuloma", and the other way round); "no granuloma" denies its kinds too;
- contradicts where the facts know the finding with another status on that side, or present on the other side only;
- is vague or wrong in its details when it names no side where the facts have one, or a place or size that does not
  agree: it counts as a claim, and hits nothing;
- is unsupported when it says present (or uncertain) of a finding the facts do not mention. It is not counted when it
  says absent, when the finding is the site of a fact, or when it names a structure of the body and no fact does.

A claim that another one says more exactly is not counted twice. F1 = 2 hits / (counted claims + facts). A fact that
one claim hits and another denies is not hit.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..findings import (
    ABSENT,
    PRESENT,
    STRUCTURES,
    UNPAIRED,
    Claim,
    canonical,
    kinds_of,
    read_claims,
    sides_of,
    sites_agree,
)
from .text import completion_text

if TYPE_CHECKING:
    from ..data.records.sample import Fact

SIZE_MM, SIZE_SHARE = 2.0, 0.2
"""Two sizes agree within so many mm, or within this share of the true one."""


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
        site = canonical(fact.site)[0] if fact.site else ""
        for side in sides or ("",):
            truth.add(Claim(finding, fact.status or PRESENT, side, site, getattr(fact, "size_mm", None) or 0.0))
    return truth


def fact_score(text: str, facts: Sequence["Fact"]) -> FactScore:
    """Count a text's claims against a sample's facts; a text that is not a string claims nothing."""
    truth = fact_claims(facts)
    sites = {fact.site for fact in truth if fact.site} - {fact.finding for fact in truth}
    claims = read_claims(completion_text(text), {fact.finding for fact in truth})
    anatomy = not truth or any(fact.finding in STRUCTURES for fact in truth)
    return _count([c for c in claims if anatomy or c.finding not in STRUCTURES], truth, sites)


def reference_score(text: str, reference: str) -> FactScore:
    """Count a text's claims against those of a reference report; structures of the body are left out of both."""
    truth = _stated(c for c in read_claims(completion_text(reference)) if c.finding not in STRUCTURES)
    claims = [c for c in read_claims(completion_text(text)) if c.finding not in STRUCTURES]
    return _count(claims, truth, frozenset())


def _stated(claims: Iterable[Claim]) -> set[Claim]:
    """Return a reference's facts: its claims, less denials of what it also says is there ("clear, but for a scar")."""
    said = set(_exact(list(claims)))
    affirmed = {kind for claim in said if claim.status != ABSENT for kind in kinds_of(claim.finding)}
    return {claim for claim in said if claim.status != ABSENT or claim.finding not in affirmed}


def _exact(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims without those that another one says already, or more exactly."""
    return [claim for claim in claims if not any(_covers(other, claim) for other in claims if other != claim)]


def _covers(one: Claim, other: Claim) -> bool:
    """Say whether a claim says all that another one says; of denials, the general one covers the particular one."""
    if one.status != other.status:
        return False
    if one.status == ABSENT:
        general = one.side in ("", other.side) and one.site in ("", other.site)
        return general and one.finding in kinds_of(other.finding)
    details = ((other.side, one.side, ""), (other.site, one.site, ""), (other.size_mm, one.size_mm, 0.0))
    return other.finding in kinds_of(one.finding) and all(said in (known, none) for said, known, none in details)


def _count(claims: Sequence[Claim], truth: Collection[Claim], sites: Collection[str]) -> FactScore:
    hit: set[Claim] = set()
    spoiled: set[Claim] = set()
    num_hitting = contradictions = others = 0
    for claim in _exact(claims):
        known = [fact for fact in truth if _is_about(claim, fact)]
        if not known:
            others += claim.status != ABSENT and claim.finding not in sites
            continue
        agreeing = [fact for fact in known if _agrees(claim, fact)]
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


def _is_about(claim: Claim, fact: Claim) -> bool:
    """Say whether a claim speaks of a fact's finding; what is denied is denied with all its kinds, and no more."""
    if claim.finding in kinds_of(fact.finding):
        return True
    return claim.status != ABSENT and fact.finding in kinds_of(claim.finding)


def _agrees(claim: Claim, fact: Claim) -> bool:
    if claim.status != fact.status or fact.side not in ("", claim.side) or not sites_agree(claim.site, fact.site):
        return False
    if not claim.size_mm or not fact.size_mm:
        return True
    return abs(claim.size_mm - fact.size_mm) <= max(SIZE_MM, SIZE_SHARE * fact.size_mm)


def _contradicted(claim: Claim, known: list[Claim]) -> list[Claim]:
    """Return the facts of the claim's finding that rule it out."""
    same_side = [f for f in known if "" in (f.side, claim.side) or f.side == claim.side]
    if same_side:
        # Without a side, "a kidney is visible" stands as long as one is.
        return [] if any(f.status == claim.status for f in same_side) else same_side
    return known if claim.status == PRESENT and all(f.status == PRESENT for f in known) else []

"""Facts named in a text: which findings it claims, present or absent, on which side.

Protocol. The lexicon is the findings named in the sample's facts plus `STRUCTURES`. A text is cut into clauses at
sentence ends, semicolons and `but`, `however`, `although`, `while`. Within a clause a negation before a mention ("no X",
"without X") or after it ("X is not visible", "X is absent") denies it, and a hedge ("possible X") makes it uncertain. A
side is the word before the mention ("left X", "left and right X") or after it ("X on the left").

A claim hits a fact of the same finding when status and side agree (a fact or a claim without a side agrees with any
side). A claim that only disagrees is a contradiction. A claim about a finding that the facts do not mention is
unsupported when it says present, and not counted when it says absent or when the finding is the site of a fact.
F1 = 2 hits / (counted claims + facts), each hit once. A text without claims scores 0.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .lexicon import STRUCTURES
from .text import MAX_TEXT, completion_text

if TYPE_CHECKING:
    from ..data.record import Fact

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"

_CLAUSE_END = re.compile(r"(?<!\d)\.(?!\d)|\.(?=\s|$)|[;!?\n]+|\b(?:but|however|although|though|whereas|while)\b")
_DENIED_BEFORE = re.compile(
    r"\b(?:no|not|without|neither|nor|absence of|absent|free of|negative for|cannot see|can ?not be seen|never)\b"
)
_DENIED_AFTER = re.compile(
    r"\b(?:not|isn t|aren t|cannot|never) (?:be )?(?:\w+ ){0,2}?(?:visible|seen|present|shown|identified|detected|found|"
    r"visuali[sz]ed|depicted|included|evident|there)\b|\b(?:absent|invisible|missing)\b"
)
_HEDGED = re.compile(r"\b(?:possibl[ey]|probabl[ey]|may|might|suspicious|suspected|cannot exclude|uncertain|questionable)\b")
_ONLY_NOT = re.compile(r"\bnot only\b|\bno (?:doubt|change)\b|\bnot (?:just|merely)\b")
_SIDE = re.compile(r"\b(?:left|right|both|bilateral)\b")
_BOTH = frozenset({"left", "right"})


@dataclass(frozen=True, order=True)
class Claim:
    """One statement of a text.

    Attributes:
        finding: canonical name.
        status: `present`, `absent` or `uncertain`.
        side: `left`, `right` or an empty text.
    """

    finding: str
    status: str
    side: str = ""


@dataclass(frozen=True)
class FactScore:
    """Counts of one text against one sample's facts.

    Attributes:
        hits: facts that a claim states rightly and no claim contradicts.
        contradictions: claims whose finding the facts know otherwise.
        unsupported: claims of presence that the facts do not mention.
        num_claims: claims that count: hits, contradictions and unsupported ones.
        num_facts: facts there are.
    """

    hits: int
    contradictions: int
    unsupported: int
    num_claims: int
    num_facts: int

    @property
    def f1(self) -> float:
        """2 hits / (claims + facts); 1 where there are neither facts nor claims."""
        total = self.num_claims + self.num_facts
        return 2 * self.hits / total if total else 1.0


def report_fact_f1(text: str, facts: Sequence["Fact"]) -> float:
    """Return the F1 of the facts a text states; the module's docstring states the protocol."""
    return fact_score(text, facts).f1


def fact_score(text: str, facts: Sequence["Fact"]) -> FactScore:
    """Count a text's claims against a sample's facts; a text that is not a string is empty."""
    truth = sorted(
        {Claim(*_split_side(fact.finding, fact.side), str(fact.status or PRESENT)) for fact in facts},
    ) if False else _truth_claims(facts)  # fmt: skip
    return _count(text, facts, truth)

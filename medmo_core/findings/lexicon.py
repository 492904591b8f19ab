"""The words of all files of this package as one lexicon."""

from functools import lru_cache

from . import cues
from .anatomy import BOTH_SIDES, PARTS, SIDES, SITES, STRUCTURE_SPELLINGS, STRUCTURES
from .names import FINDINGS
from .phrases import Lexicon, plurals, tokenise
from .qualities import QUALITIES
from .sizes import UNITS

FINDING, STRUCTURE, PART, SITE, QUALITY = "finding", "structure", "part", "site", "quality"
SIDE, UNIT, BREAK = "side", "unit", "break"
DENIED, NOT, GONE, PREDICATE, NOTHING, VALUE = "denied", "not", "gone", "predicate", "nothing", "value"
HEDGE, DOUBTED, HYPOTHESIS = "hedge", "doubted", "hypothesis"


@lru_cache(maxsize=128)
def lexicon(extra: tuple[str, ...] = (), borrowed: tuple[tuple[str, str | None, str], ...] = ()) -> Lexicon:
    """Return the lexicon.

    Args:
        extra: names of findings to look for that it does not know.
        borrowed: kinds, findings and phrases of other lexicons (`borrowed.py`).
    """
    found = Lexicon()
    for name in extra:
        for form in (name, *plurals(name)):
            found.add_words(FINDING, name, tokenise(form))
    for kind, name, phrases in borrowed:
        found.add(kind, name, phrases, plural=kind == FINDING)
    for kind, table in ((PART, PARTS), (SITE, SITES), (QUALITY, QUALITIES)):
        for name, phrases in table.items():
            found.add(kind, name, phrases)
    for name in STRUCTURES:
        found.add(STRUCTURE, name, f"{name}; {STRUCTURE_SPELLINGS.get(name, name)}", plural=True)
    for name, phrases in FINDINGS.items():
        found.add(FINDING, name, phrases, plural=True)
    for sides, phrases in SIDES.items():
        found.add(SIDE, sides, phrases)
    for factor, phrases in UNITS.items():
        found.add(UNIT, factor, phrases, plural=True)
    for kind, phrases in (
        (HEDGE, cues.HEDGE_BEFORE),
        (DENIED, cues.DENIED_BEFORE),
        (NOT, "; ".join(cues.NOT)),
        (GONE, cues.DENIED_AFTER),
        (VALUE, cues.VALUES),
        (PREDICATE, cues.PREDICATES),
        (NOTHING, cues.ONLY_SOUND_DENIED),
        (DOUBTED, cues.HEDGE_AFTER),
        (HYPOTHESIS, cues.HYPOTHESES),
        (BREAK, cues.BREAKS),
    ):
        found.add(kind, None, phrases)
    for mark in cues.MARKS:
        found.add_words(BREAK, None, [mark])
    return found


BOTH = frozenset(word.strip() for word in BOTH_SIDES.split(";"))
"""Words of a site that name both sides too."""

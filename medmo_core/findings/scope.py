"""Whether what a clause names is there: how far denials, hedges and predicates reach.

A clause is cut after every predicate ("is visible", "are not seen"), so that a predicate speaks of what stands before
it. Within a piece

- a denial ("no", "without", "free of") reaches everything after it; a denied or negative predicate ("not seen",
  "absent", "has resolved") everything before it, unless both come together ("has not resolved");
- a hedge ("may represent", "possible") makes everything after it uncertain; before its end ("is possible", "suspected")
  everything before it;
- what follows a hypothesis ("rule out", "if") is not reported at all.
"""

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from .lexicon import DENIED, DOUBTED, FINDING, GONE, HEDGE, HYPOTHESIS, NOT, PREDICATE, STRUCTURE
from .phrases import Tag

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"
_NEVER = 1 << 30
_end_of = attrgetter("end")
_NOT_REACH = 2  # words between "not" and its predicate: "not clearly visible"


class Piece(NamedTuple):
    """A piece of a clause up to token `end`; from which token on what it names is denied, doubted, not reported."""

    end: int
    denied_from: int
    doubted_from: int
    hypothetical_from: int


def pieces(tags: Sequence[Tag], clause_end: int) -> list[Piece]:
    """Return the pieces of a clause.

    Args:
        tags: tags of the clause.
        clause_end: the token after its last.
    """
    found: list[Piece] = []
    denied = doubted = hypothetical = _NEVER
    last_not, names_something = -_NEVER, False
    for index, (start, end, kind, _) in enumerate(tags):
        following = tags[index + 1] if index + 1 < len(tags) else None
        if kind in (FINDING, STRUCTURE):
            names_something = True
        elif kind in (DENIED, NOT):
            denied = min(denied, start)
            last_not = end if kind == NOT else last_not
        elif kind == HEDGE:
            # "X suspected." and "X may be seen" speak of what stands before them.
            closes = following is None and end == clause_end
            passive = following is not None and following.kind == PREDICATE and following.start - end <= 1
            doubted = 0 if (closes or passive) and names_something else min(doubted, start)
        elif kind == DOUBTED:
            doubted = doubted if doubted < _NEVER else 0  # after another hedge it closes that one
        elif kind == HYPOTHESIS:
            hypothetical = min(hypothetical, start)
        elif kind in (PREDICATE, GONE):
            if kind == PREDICATE and following is not None and following[0] == end and following.kind == FINDING:
                continue  # "visible pneumothorax": an adjective
            turned = (kind == GONE) != (start - last_not <= _NOT_REACH)  # "has not resolved" is still there
            if names_something:
                found.append(Piece(end, 0 if turned else denied, doubted, hypothetical))
                denied = doubted = _NEVER
                last_not, names_something = -_NEVER, False
            elif turned or denied < _NEVER:  # "Not visible: X", "no evidence is seen of X": it speaks of what follows
                denied = 0
    found.append(Piece(_NEVER, denied, doubted, hypothetical))
    return found


def status_at(place: int, cut: Sequence[Piece]) -> str | None:
    """Return the status of what stands at token `place`; None where it is not reported."""
    piece = cut[bisect_right(cut, place, key=_end_of)]
    if place >= piece.hypothetical_from:
        return None
    if place >= piece.denied_from:
        return ABSENT
    return UNCERTAIN if place >= piece.doubted_from else PRESENT

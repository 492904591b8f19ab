"""What a text claims about findings: present or absent, on which side.

A text is cut into clauses at sentence ends, semicolons and words such as `but`, and each clause after every predicate
("is visible", "are not seen"), so that a predicate speaks of what stands before it. Within a piece:

- "no X", "without X", "free of X" deny the mentions after them; "X is not visible", "X is absent" deny the whole piece;
- "possible X" and its kind make an affirmed mention uncertain;
- a side is the word before the mention ("left X", "left and right X", "both X") or after it ("X on the left", "X in the
  left Y");
- a mention that only says where ("lesion in the Y", "MR of the Y") is no claim, unless it is one the caller looks for.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from .lexicon import SPELLINGS, STRUCTURES, UNPAIRED, plurals
from .text import MAX_TEXT

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"
LEFT, RIGHT = "left", "right"

_CLAUSE_END = re.compile(r"\.(?!\d)|[;!?\n]+|\b(?:but|however|although|though|whereas|while|except)\b")
_PREDICATE = re.compile(
    r"\b(?:(?P<denied>(?:not|isn t|aren t|cannot|can t|never)(?: \w+){0,2}? )?"
    r"(?:visible|seen|present|shown|identified|detected|found|visuali[sz]ed|depicted|recogni[sz]able|evident)"
    r"|(?P<gone>absent|invisible|missing|not there))\b"
)
_DENIED_BEFORE = re.compile(r"\b(?:no|not|without|neither|nor|absence of|free of|negative for|lacks?)\b")
_ONLY_SOUNDS_DENIED = re.compile(r"\b(?:not only|no doubt|not just|no change in)\b")
_HEDGE = re.compile(r"\b(?:possibl[ey]|probabl[ey]|may|might|could|suspicious|suspected|uncertain|questionable)\b")
_SIDE_BEFORE = re.compile(
    r"\b(left|right|both|bilateral)(?: (?:and|or) (left|right))?"
    r"(?: (?!and\b|or\b|of\b|side\b|with\b|is\b|are\b)\w+)?\s*$"
)
_SIDE_AFTER = re.compile(r"^[^,:]{0,40}?\b(?:on|in|at|within) (?:the |its |their )?(?:patient s )?(left|right|both)\b")
_PLACE_BEFORE = re.compile(r"\b(?:(?:in|within|inside)(?: the)?|(?:of|from) the)(?: left| right)? $")
_SIDES = {"both": (LEFT, RIGHT), "bilateral": (LEFT, RIGHT), LEFT: (LEFT,), RIGHT: (RIGHT,)}


@dataclass(frozen=True, order=True)
class Claim:
    """One statement.

    Attributes:
        finding: canonical name.
        status: `present`, `absent` or `uncertain`.
        side: `left`, `right` or an empty text.
    """

    finding: str
    status: str
    side: str = ""


class _Mention(NamedTuple):
    finding: str
    start: int
    end: int


def plain(text: str) -> str:
    """Return a text in lower case with spaces for hyphens, underscores and apostrophes; punctuation stays."""
    text = unicodedata.normalize("NFKC", text[:MAX_TEXT]).casefold()
    return re.sub(r"[^\S\n]+", " ", re.sub(r"[-_'\u2019]", " ", text))


def canonical(name: str) -> tuple[str, tuple[str, ...]]:
    """Return a finding's canonical name and the sides that stand in it: `left_kidney` -> `kidney`, (`left`,)."""
    words = plain(name).split()
    sides = tuple(side for word in words if word in _SIDES for side in _SIDES[word])
    bare = " ".join(word for word in words if word not in _SIDES)
    return SPELLINGS.get(bare, bare), sides


def sides_of(value: str | None) -> tuple[str, ...]:
    """Return the sides a fact's field names: `both` is two, nothing or anything else is none."""
    return _SIDES.get(plain(value or "").strip(), ())


@lru_cache(maxsize=512)
def _lexicon(extra: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """Return a pattern of all forms of all names, longest first, and the name of each form."""
    names = {name: name for name in (*STRUCTURES, *extra)} | SPELLINGS
    forms = {plural: name for form, name in names.items() for plural in plurals(form)} | names
    longest_first = sorted((form for form in forms if form), key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b"), forms


def read_claims(text: str, findings: Iterable[str] = ()) -> set[Claim]:
    """Return what a text claims; the module's docstring states the rules.

    Args:
        text: anything.
        findings: names to look for besides `STRUCTURES`.
    """
    wanted = {canonical(name)[0] for name in findings}
    pattern, forms = _lexicon(tuple(sorted(wanted)))
    claims: set[Claim] = set()
    for clause in _CLAUSE_END.split(plain(text)):
        mentions = [_Mention(forms[m.group()], m.start(), m.end()) for m in pattern.finditer(clause)]
        statuses = _statuses(clause, mentions)
        for index, mention in enumerate(mentions):
            if mention.finding not in wanted and _PLACE_BEFORE.search(clause[: mention.start]):
                continue
            for side in ("",) if mention.finding in UNPAIRED else _sides(clause, mentions, index):
                claims.add(Claim(mention.finding, statuses[index], side))
    return claims


def _statuses(clause: str, mentions: list[_Mention]) -> list[str]:
    """Return the status of every mention of a clause."""
    statuses: list[str] = []
    start, carried = 0, False
    for predicate in [*_PREDICATE.finditer(clause), None]:
        end = len(clause) if predicate is None else predicate.end()
        denied = predicate is not None and bool(predicate.group("denied") or predicate.group("gone"))
        piece = clause[start : end if predicate is None else predicate.start()]
        cues = [m.start() + start for m in _DENIED_BEFORE.finditer(_ONLY_SOUNDS_DENIED.sub(_blank, piece))]
        own = [m for m in mentions if start <= m.start < end]
        for mention in own:
            if denied or carried or any(cue < mention.start for cue in cues):
                statuses.append(ABSENT)
            else:
                statuses.append(UNCERTAIN if _HEDGE.search(piece) else PRESENT)
        # "Not visible: X, Y" and "no evidence is seen of X": the denial speaks of what follows.
        carried = not own and (denied or bool(cues) or carried)
        start = end
    return statuses


def _blank(match: re.Match[str]) -> str:
    return " " * len(match.group())


def _sides(clause: str, mentions: list[_Mention], index: int) -> tuple[str, ...]:
    mention = mentions[index]
    before = clause[mentions[index - 1].end if index else 0 : mention.start]
    found = _SIDE_BEFORE.search(before)
    if found:
        return tuple(dict.fromkeys(s for word in found.groups() if word for s in _SIDES[word]))
    after = clause[mention.end : mentions[index + 1].start if index + 1 < len(mentions) else len(clause)]
    found = _SIDE_AFTER.search(after)
    return _SIDES[found.group(1)] if found else ("",)

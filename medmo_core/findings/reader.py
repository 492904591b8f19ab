"""Claims of a text about findings: there or not, on which side, where, how large.

The text is read clause by clause (`scope.py` says what ends one). Each clause names findings by their words, or by a
structure and its quality (`pairing.py`); denials and hedges say whether they are there (`scope.py`); the adjectives
before and the preposition after say on which side and where (`places.py`); a length beside is the size (`sizes.py`).
A mention of a structure claims that it can be seen, unless it only says where ("lesion in the liver", "MR of the
brain") and the caller does not look for it.
"""

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from .anatomy import STRUCTURES, UNPAIRED
from .lexicon import BREAK, FINDING, QUALITY, SITE, STRUCTURE, UNIT, lexicon
from .names import CENTRAL, FINDINGS
from .pairing import Mention, mentions
from .phrases import Tag, plain, tokenise
from .places import place_of
from .qualities import PAIRS
from .scope import ABSENT, pieces, status_at
from .sections import reported
from .sizes import size_mm
from .values import Part, is_bare, parts, value_end

_SAYING = frozenset({FINDING, QUALITY, STRUCTURE, SITE})
_SIDES = {"left": ("left",), "right": ("right",), "both": ("left", "right"), "bilateral": ("left", "right")}
_ONE = UNPAIRED | CENTRAL
_KNOWN = frozenset({*STRUCTURES, *FINDINGS, *(name for meaning in PAIRS.values() for name, _ in meaning)})
_start_of = attrgetter("start")
_LUNGS = ("lung", "lungs")
MAX_CLAIMS = 256
"""A text's further claims are not read."""

_EMPTY_LINES = 4  # between a heading and its value
_SIZE_REACH = 4  # words between a size and the finding it stands before


class Claim(NamedTuple):
    """One statement.

    Attributes:
        finding: canonical name.
        status: `present`, `absent` or `uncertain`.
        side: `left`, `right` or an empty text.
        site: canonical place, or an empty text.
        size_mm: largest diameter; 0 where none is named.
    """

    finding: str
    status: str
    side: str = ""
    site: str = ""
    size_mm: float = 0.0


@lru_cache(maxsize=4096)
def canonical(name: str) -> tuple[str, tuple[str, ...]]:
    """Return a finding's canonical name and the sides that stand in it: `left_kidney` -> `kidney`, (`left`,)."""
    words = plain(name).split()
    sides = tuple(side for word in words if word in _SIDES for side in _SIDES[word])
    bare = " ".join(word for word in words if word not in _SIDES)
    tokens = tokenise(bare)
    tags = list(lexicon().scan(tokens))
    if bare not in _KNOWN and len(tags) == 1 and tags[0].end - tags[0].start == len(tokens):
        bare = tags[0].value if tags[0].kind in (FINDING, STRUCTURE, SITE) else bare
    return bare, sides


def sides_of(value: str | None) -> tuple[str, ...]:
    """Return the sides a fact's field names: `both` is two, nothing or anything else is none."""
    return _SIDES.get(plain(value or "").strip(), ())


def read_claims(
    text: str, findings: Iterable[str] = (), borrowed: tuple[tuple[str, str | None, str], ...] = ()
) -> list[Claim]:
    """Return what a text claims, in its order, each claim once; the module's docstring states the rules.

    Args:
        text: anything; a report's indication, history, comparison and technique are left out.
        findings: names to look for besides those of this package.
        borrowed: phrases of other lexicons, beside this package's (`borrowed.borrow`).
    """
    wanted = frozenset(canonical(name)[0] for name in findings)
    words = lexicon(tuple(sorted(wanted - _KNOWN)), borrowed)
    tokens = tokenise(reported(text))
    claims: dict[Claim, None] = {}
    for clause, start, end in _clauses(list(words.scan(tokens)), tokens):
        for part in parts(clause, tokens, start, end):
            claims.update(dict.fromkeys(_claims(part, tokens, wanted)))
    return list(claims)[:MAX_CLAIMS]


def _clauses(tags: list[Tag], tokens: list[str]) -> Iterator[tuple[list[Tag], int, int]]:
    """Yield the tags of each clause that can say something, its first token and the one after its last."""
    clause: list[Tag] = []
    start = 0
    for index, tag in enumerate(tags):
        if tag.kind != BREAK:
            clause.append(tag)
        elif not _leads_to_value(tags, index, clause, tokens, start):
            if any(other.kind in _SAYING for other in clause):
                yield clause, start, tag.start
            clause, start = [], tag.end
    if any(other.kind in _SAYING for other in clause):
        yield clause, start, len(tokens)


def _leads_to_value(tags: list[Tag], index: int, clause: list[Tag], tokens: list[str], start: int) -> bool:
    """Say whether a mark that ends clauses stands between a heading and its value: "Pneumothorax?" and then "No."."""
    if not clause:
        return False
    mark, following = tags[index], tags[index + 1 : index + 1 + _EMPTY_LINES]
    lines = itertools.takewhile(lambda tag: tokens[tag.start] == "\n", following)
    index += 1 + sum(1 for _ in lines)
    if index == len(tags) or tags[index].start != tags[index - 1].end:
        return False
    end = next((tag.start for tag in tags[index + 1 : index + 5] if tag.kind == BREAK), len(tokens))
    value = value_end(tags, index, tokens, end)
    if value is None or value < end:
        return False
    if tokens[mark.start] == "?" or tokens[mark.start - 1] in (":", "?", "\n"):
        return True
    stated = tokens[mark.start] == "\n" or (tokens[mark.start] == "." and value > tags[index].end)
    return stated and is_bare(clause, tokens, start, mark.start)


def _claims(part: Part, tokens: list[str], wanted: frozenset[str]) -> Iterator[Claim]:
    """Yield the claims of one part of a clause."""
    tags, clause_end, denied = part
    named = mentions(tags, tokens)
    named += [m for m in _structures(tags, tokens) if m.finding in wanted or not _is_place(tokens, m)]
    if not named:
        return
    cut, starts = pieces(tags, clause_end), [tag.start for tag in tags]
    named.sort(key=_start_of)
    sizes = _sizes(tags, tokens, named)
    for mention in named:
        status = ABSENT if denied[0] <= mention.place < denied[1] else status_at(mention.place, cut)
        if status is not None and not mention.there:
            status = None if status == ABSENT else ABSENT  # "not normal" does not say what is wrong
        if status is None:
            continue
        sides, site = place_of(tags, starts, tokens, mention.start, mention.end)
        size = sizes.get(mention.start, 0.0) if status != ABSENT else 0.0
        for side in ("",) if mention.finding in _ONE or not sides else sides:
            yield Claim(mention.finding, status, side, site, size)


def _structures(tags: Sequence[Tag], tokens: Sequence[str]) -> Iterator[Mention]:
    for tag in tags:
        if tag.kind == STRUCTURE:
            yield Mention(tag.value, tag.start, tag.end, tag.start, there=True)
        elif tag.kind == SITE and tokens[tag.end - 1] in _LUNGS:  # "the lower lung"
            yield Mention("lung", tag.start, tag.end, tag.start, there=True)


def _is_place(tokens: Sequence[str], mention: Mention) -> bool:
    """Say whether a structure only says where: "in the liver", "of the left kidney"."""
    start = mention.start
    if start and tokens[start - 1] in _SIDES:
        start -= 1
    the = tokens[start - 1 : start] == ["the"]
    before = tokens[start - 2] if the and start > 1 else tokens[start - 1] if start else ""
    return before in ("in", "within", "inside") or (the and before in ("of", "from"))


def _sizes(tags: Sequence[Tag], tokens: Sequence[str], named: Sequence[Mention]) -> dict[int, float]:
    """Return the sizes of a clause by the start of the mention they belong to: the next one near by, else the last."""
    found: dict[int, float] = {}
    for tag in tags:
        size = size_mm(tokens, tag.start, tag.end, tag.value) if tag.kind == UNIT else None
        if size is None:
            continue
        index = bisect_left(named, tag.end, key=_start_of)
        near = index < len(named) and named[index].start - tag.end <= _SIZE_REACH
        if near and "," not in tokens[tag.end : named[index].start]:
            owner = named[index].start
        elif index:
            owner = named[index - 1].start
        else:
            continue
        found[owner] = max(size, found.get(owner, 0.0))
    return found

"""Fixed templates, in which a finding is a heading and its value says whether it is there: "Pneumothorax: none".

The value may also stand in brackets ("pneumothorax (no)"), behind a dash that `tokenise` took away ("effusion - none"),
or on the line below. It denies its own heading only: the item right before it and, in a list, the items before that
one as long as they are names and nothing else ("pneumothorax, effusion: none").
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .lexicon import DENIED, FINDING, NOT, PART, PREDICATE, QUALITY, SIDE, SITE, STRUCTURE, VALUE
from .names import kinds_of
from .phrases import Tag

_FILLERS = frozenset({
    "evidence", "sign", "signs", "of", "any", "acute", "definite", "convincing", "clear", "obvious", "significant",
    "large", "is", "are", "was", "were", "at", "this", "time", "level", "exam", "examination", "study", "film", "image",
    "here", "on", "either", "side", "bilaterally", "today",
})  # fmt: skip
"""Words of a denial that name nothing: "no evidence", "none at this time"."""

_JOINS = frozenset({"and", "or", "/", "the", "any", ":", "(", ")"})
_LIST_JOINS = _JOINS | {","}
_OPENS = frozenset({":", "(", "\n", "?", "."})
_BARE_DENIALS = frozenset({"no", "negative"})
_NAMES = frozenset({FINDING, STRUCTURE, PART, SITE, SIDE, QUALITY})
_NAMED = frozenset({FINDING, STRUCTURE, QUALITY})
_DENIALS = frozenset({VALUE, DENIED, NOT})
_LONGEST_HEADING = 6  # words
_REACH = 24  # tokens before a value, and tags on either side, that are looked at


class Part(NamedTuple):
    """Stretch of a clause that is read by itself.

    Attributes:
        tags: its tags, without a value that denies its heading.
        end: token after its last.
        denied: first token, and the one after the last, of what a value denies.
    """

    tags: Sequence[Tag]
    end: int
    denied: tuple[int, int] = (0, 0)


def value_end(tags: Sequence[Tag], index: int, tokens: Sequence[str], end: int) -> int | None:
    """Return where a denial ends that names nothing up to the next comma or bracket; None where it is none such.

    Args:
        tags: tags of the text or of a clause.
        index: index of the tag that may be such a denial.
        tokens: tokens of the text.
        end: token at which the clause ends.
    """
    if tags[index].kind not in _DENIALS:
        return None
    following, place = index + 1, tags[index].end
    while place < end and tokens[place] not in (",", ")"):
        if following < len(tags) and tags[following].start == place and tags[following].kind == PREDICATE:
            place = tags[following].end
            following += 1
        elif tokens[place] in _FILLERS:
            place += 1
        else:
            return None
    return place


def is_bare(
    tags: Sequence[Tag], tokens: Sequence[str], start: int, end: int, joins: frozenset[str] = _JOINS
) -> bool:
    """Say whether the tokens from `start` to `end` are names, words that join them, and nothing else."""
    place = start
    for tag in tags:
        if tag.start >= end:
            break
        if tag.end <= start:
            continue
        if tag.kind not in _NAMES or not joins.issuperset(tokens[place : tag.start]):
            return False
        place = tag.end
    return place > start and joins.issuperset(tokens[place:end])


def parts(tags: list[Tag], tokens: Sequence[str], start: int, end: int) -> Iterator[Part]:
    """Yield the parts of a clause, most often one: the whole.

    Args:
        tags: tags of the clause.
        tokens: tokens of the text.
        start: first token of the clause.
        end: the token after its last.
    """
    kinds = {tag.kind for tag in tags}
    if kinds.isdisjoint(_DENIALS) or kinds.isdisjoint(_NAMED):
        yield Part(tags, end)
        return
    own: list[Tag] = []
    cuts = _heading_commas(tags, tokens, start, end)[::-1]
    for index, tag in enumerate(tags):
        while cuts and cuts[-1] <= tag.start:
            start = cuts.pop() + 1
            yield Part(own, start - 1)
            own = []
        denied = _denied(tags, index, own, tokens, start, end)
        if denied is None:
            own.append(tag)
            continue
        value = value_end(tags, index, tokens, end)
        start = tag.start if value is None else value
        yield Part(own, start, denied)
        own = [tag] if value is None else []  # "Pneumothorax: no pneumothorax is seen": the denial goes on
    yield Part(own, end)


def _heading_commas(tags: Sequence[Tag], tokens: Sequence[str], start: int, end: int) -> list[int]:
    """Return the commas after which a heading begins that is none of a list: "nodule: small, effusion: none"."""
    found: list[int] = []
    headed, comma = False, -1
    for place in range(start, end):
        if tokens[place] == ",":
            comma = place
        elif tokens[place] == ":":
            near = comma >= 0 and place - comma <= _LONGEST_HEADING + 1
            if near and (headed or not is_bare(tags, tokens, start, comma, _LIST_JOINS)):
                found.append(comma)
            headed, comma = True, -1
    return found


def _denied(
    tags: Sequence[Tag], index: int, own: Sequence[Tag], tokens: Sequence[str], start: int, end: int
) -> tuple[int, int] | None:
    """Return which tokens before a denial are its heading; None where it is no value of one."""
    tag, near = tags[index], own[-_REACH:]
    if tag.kind not in _DENIALS or not any(other.kind in _NAMED for other in near):
        return None
    opened = tokens[tag.start - 1] in _OPENS
    direct = own[-1].end == tag.start and (tag.kind == VALUE or tokens[tag.start] in _BARE_DENIALS)
    if not opened and not direct:
        return None
    head_end = tag.start
    while head_end > start and tokens[head_end - 1] in _OPENS:
        head_end -= 1
    head_start = _item_start(near, tokens, max(start, head_end - _REACH), head_end)
    heading = [other for other in near if head_start <= other.start < head_end]
    if value_end(tags, index, tokens, end) is None:
        following = [other for other in tags[index + 1 : index + _REACH] if other.kind == FINDING]
        said = {kind for other in following for kind in kinds_of(other.value)}
        same = any(other.kind == FINDING and other.value in said for other in heading)
        return (head_start, head_end) if same and tokens[tag.start - 1] == ":" else None
    if not any(other.kind in _NAMED for other in heading):
        return None
    if tokens[tag.start] == "negative" and not any(other.kind == FINDING for other in heading):
        return None  # "lungs: negative" finds nothing there
    return head_start, head_end


def _item_start(tags: Sequence[Tag], tokens: Sequence[str], start: int, end: int) -> int:
    """Return where the heading that ends before token `end` begins."""
    place = end
    while place > start and tokens[place - 1] not in (",", ":"):
        place -= 1
    while place > start and tokens[place - 1] == ",":
        before = place - 1
        while before > start and tokens[before - 1] not in (",", ":"):
            before -= 1
        if not is_bare(tags, tokens, before, place - 1):
            break
        place = before
    return place

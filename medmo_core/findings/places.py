"""On which side and in which place a finding is: "left lower lobe nodule", "nodule in the left lower lobe"."""

from bisect import bisect_left
from collections.abc import Sequence

from .cues import LINKS, STOPS
from .lexicon import BOTH, FINDING, PART, QUALITY, SIDE, SITE, STRUCTURE
from .phrases import Tag

_GAP = 2  # words between adjectives
_REACH = 6  # words between a finding and the preposition of its place
_MAX_TAGS = 10  # phrases that are looked at before and after a finding
_NO_MORE = frozenset({",", ":", "(", ")"})


def place_of(
    tags: Sequence[Tag], starts: Sequence[int], tokens: Sequence[str], start: int, end: int
) -> tuple[tuple[str, ...], str]:
    """Return the sides and the place of what a clause names; empty where it has none.

    Args:
        tags: tags of the clause.
        starts: their starts.
        tokens: tokens of the text.
        start: first token of what is named.
        end: the token after its last.
    """
    first, last = bisect_left(starts, start), bisect_left(starts, end)
    sides, site = _inside(tags[first:last], tokens)
    sides_before, site_before = _before(tags, first, tokens, start)
    sides, site = sides or sides_before, site or site_before
    if not sides or not site:
        sides_after, site_after = _after(tags, last, tokens, end)
        if not sides and not (site and site_after):
            sides = sides_after
        site = site or site_after
    return sides, site


def _named(tag: Tag, tokens: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the sides and the place that one phrase names."""
    if tag.kind == SIDE:
        return tag.value, ""
    both = ("left", "right") if tokens[tag.start] in BOTH else ()
    return both, tag.value


def _inside(tags: Sequence[Tag], tokens: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Read what stands between a structure and its quality: "calcified left hilar node"."""
    sides: tuple[str, ...] = ()
    site = ""
    for tag in tags:
        if tag.kind in (SIDE, SITE):
            named, place = _named(tag, tokens)
            sides = tuple(dict.fromkeys((*sides, *named)))
            site = site or place
    return sides, site


def _before(tags: Sequence[Tag], index: int, tokens: Sequence[str], start: int) -> tuple[tuple[str, ...], str]:
    """Read the adjectives before a noun; `left and right` is both."""
    sides: tuple[str, ...] = ()
    site = ""
    for tag in reversed(tags[max(0, index - _MAX_TAGS) : index]):
        gap = tokens[tag.end : start]
        joined = gap in (["and"], ["or"]) and tag.kind == SIDE and bool(sides)
        if len(gap) > _GAP or (not STOPS.isdisjoint(gap) and not joined) or not LINKS.isdisjoint(gap):
            break
        if tag.kind in (SIDE, SITE, STRUCTURE, PART):
            named, place = _named(tag, tokens)
            if sides and named and not joined:
                break
            sides = tuple(dict.fromkeys((*named, *sides)))
            site = site or place
        elif tag.kind != QUALITY:
            break
        start = tag.start
    return sides, site


def _after(tags: Sequence[Tag], index: int, tokens: Sequence[str], end: int) -> tuple[tuple[str, ...], str]:
    """Read the first place after a preposition, up to the next finding."""
    sides: tuple[str, ...] = ()
    site, linked, reach = "", False, end
    for tag in tags[index : index + _MAX_TAGS]:
        gap = tokens[reach : tag.start]
        linked = linked or not LINKS.isdisjoint(gap)
        if tag.kind == FINDING or not _NO_MORE.isdisjoint(gap) or len(gap) > _REACH:
            break
        reach = tag.end
        if tag.kind not in (SIDE, SITE, STRUCTURE, PART):
            continue
        if not linked:
            break
        named, place = _named(tag, tokens)
        if site and (named or place):
            break
        sides = tuple(dict.fromkeys((*sides, *named)))
        site = site or place
    return sides, site

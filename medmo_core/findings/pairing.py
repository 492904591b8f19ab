"""The structure that a quality speaks of: "an enlarged heart", "the heart is enlarged", "enlargement of the heart"."""

from collections.abc import Sequence
from typing import NamedTuple

from .cues import LINKS, STOPS
from .lexicon import FINDING, PART, QUALITY, SIDE, SITE, STRUCTURE, UNIT
from .names import FINDINGS
from .phrases import Tag
from .qualities import PAIRS

_NEAR = 3  # words between an adjective and its noun
_FAR = 10  # words between a noun and its predicate, or a quality and its complement
_JOINS = (["and"], [","])  # "enlarged and tortuous aorta", "coarse, irregular markings"
_BARS = frozenset({",", "and", "with"})
_NOUN_PHRASE = (QUALITY, PART, STRUCTURE, SITE, SIDE, FINDING, UNIT)
_KINDS = frozenset(second for _, second in PAIRS if second in FINDINGS)

Meaning = tuple[tuple[str, bool], ...]


class Mention(NamedTuple):
    """A finding named by tokens `start` to `end`; `place` is where denials look for it.

    `there` is False where the words themselves say that it is not there ("heart size is normal").
    """

    finding: str
    start: int
    end: int
    place: int
    there: bool


def mentions(tags: Sequence[Tag], tokens: Sequence[str]) -> list[Mention]:
    """Return the findings that a clause names, alone or as the quality of a structure."""
    found: list[Mention] = []
    used: set[int] = set()
    for index, tag in enumerate(tags):
        if tag.kind != QUALITY and not (tag.kind == FINDING and tag.value in _KINDS):
            continue
        for other, meaning in _partners(tags, index, tokens):
            used.update((tag.start, other.start))
            start, end = min(tag.start, other.start), max(tag.end, other.end)
            place = max(tag.start, other.start)
            found += [Mention(finding, start, end, place, there) for finding, there in meaning]
    alone = (tag for tag in tags if tag.kind == FINDING and tag.start not in used)
    return found + [Mention(tag.value, tag.start, tag.end, tag.start, there=True) for tag in alone]


def _meaning(structure: Tag, quality: Tag) -> Meaning | None:
    if structure.kind == SITE:
        return PAIRS.get((structure.value, quality.value)) or PAIRS.get(("lung", quality.value))
    if structure.kind in (PART, STRUCTURE, FINDING):
        return PAIRS.get((structure.value, quality.value))
    return None


def _partners(tags: Sequence[Tag], index: int, tokens: Sequence[str]) -> list[tuple[Tag, Meaning]]:
    """Return the structures that a quality belongs to, with what the pairs mean."""
    quality = tags[index]
    if index and tags[index - 1].end == quality.start:  # "hilar enlargement"
        meaning = _meaning(tags[index - 1], quality)
        if meaning:
            return [(tags[index - 1], meaning)]
    return _noun(tags, index, tokens) or _subjects(tags, index) or _complement(tags, index, tokens)


def _noun(tags: Sequence[Tag], index: int, tokens: Sequence[str]) -> list[tuple[Tag, Meaning]]:
    """Return the head of the noun phrase that an adjective opens: the granuloma of "calcified left hilar granuloma"."""
    quality, reach, head = tags[index], tags[index].end, None
    for other in tags[index + 1 : index + 1 + _FAR]:
        gap = tokens[reach : other.start]
        if len(gap) > _NEAR or other.kind not in _NOUN_PHRASE:
            break
        another = other.kind == QUALITY or (other.kind == FINDING and other.value in _KINDS)
        if not STOPS.isdisjoint(gap) and not (gap in _JOINS and another and head is None):
            break
        meaning = _meaning(other, quality)
        head = (other, meaning) if meaning else head
        reach = other.end
    return [head] if head else []


def _subjects(tags: Sequence[Tag], index: int) -> list[tuple[Tag, Meaning]]:
    """Return what a predicate speaks of: "the heart and the mediastinum are enlarged" is two."""
    quality = tags[index]
    found: list[tuple[Tag, Meaning]] = []
    for other in reversed(tags[max(0, index - _FAR) : index]):
        if quality.start - other.end > _FAR or (found and other.kind == QUALITY and other.value == "normal"):
            break
        meaning = _meaning(other, quality)
        if meaning:
            found.append((other, meaning))
    return found


def _complement(tags: Sequence[Tag], index: int, tokens: Sequence[str]) -> list[tuple[Tag, Meaning]]:
    """Return the first structure after a preposition: "blunting of the left costophrenic angle"."""
    quality = tags[index]
    for other in tags[index + 1 : index + 1 + _FAR]:
        gap = tokens[quality.end : other.start]
        if len(gap) > _FAR or not _BARS.isdisjoint(gap):
            break
        meaning = _meaning(other, quality)
        if meaning:
            return [] if LINKS.isdisjoint(gap) else [(other, meaning)]
    return []

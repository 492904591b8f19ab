"""Phrases written once and found in one pass over a text's words.

A phrase is words in lower case. `a|b` is either word, `a?` a word that may be missing; phrases of one meaning are
separated by semicolons. All phrases of a lexicon become one tree of words, so that a text is read from left to right
once, the longest phrase at each place wins, and the number of phrases costs nothing.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_TEXT = 20_000  # characters of a text that are read
_TO_SPACE = {ord(mark): " " for mark in "-_'\u2019\u2010\u2011\u2013"}
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[.;:,!?\n()/]")
_REDACTED = re.compile(r"_{2,}")
_NEGATIVE = re.compile(r"\((?:-|\u2212)\)|(?<![\w-])[-\u2212]ve\b", re.IGNORECASE)
_LEADER = re.compile(r"(?<!\.)\.{4,}+(?=[ \t]*+(?:none|nil|neg|negative|no|not|absent)\b)", re.IGNORECASE)
_ENDINGS = {"us": "i", "is": "es", "a": "ae", "um": "a", "y": "ies", "x": "ces"}
_MEANING = ""  # key of a node's meaning; no token is empty

REDACTED = "xxxx"
"""What stands for a word that de-identification took away; a run of underscores is read as the same."""


class Tag(NamedTuple):
    """A phrase found: tokens `start` up to but not including `end`, what kind of phrase, and its meaning."""

    start: int
    end: int
    kind: str
    value: Any


def plain(text: str) -> str:
    """Return a text in lower case with spaces for hyphens, underscores and apostrophes; punctuation stays.

    "(-)" and "-ve" become the word that they stand for, and dots that lead to a denial a colon.
    """
    text = text[:MAX_TEXT]
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if "__" in text:
        text = _REDACTED.sub(f" {REDACTED} ", text)
    text = _LEADER.sub(":", _NEGATIVE.sub("(none)", text))
    return text.casefold().translate(_TO_SPACE)


def tokenise(text: str) -> list[str]:
    """Return the words, numbers and marks of a text."""
    return _TOKEN.findall(plain(text))


def plurals(name: str) -> list[str]:
    """Return the plurals `name` may have, English and Latin; some are no words, which does no harm."""
    irregular = [name[: -len(end)] + other for end, other in _ENDINGS.items() if name.endswith(end)]
    return [f"{name}s", f"{name}es", *irregular]


def expand(phrases: str) -> Iterator[str]:
    """Yield every form of every phrase; the module's docstring states how they are written."""
    for phrase in phrases.split(";"):
        choices = [[*word.rstrip("?").split("|"), *([""] if word.endswith("?") else [])] for word in phrase.split()]
        for words in itertools.product(*choices):
            yield " ".join(word for word in words if word)


class Lexicon:
    """Phrases with their kinds and meanings, found by one pass over a text's tokens."""

    def __init__(self) -> None:
        self._root: dict[str, Any] = {}

    def add(self, kind: str, value: Any, phrases: str, *, plural: bool = False) -> None:
        """Add phrases of one meaning, over an earlier meaning of the same words; with the plurals of the last word."""
        for form in expand(phrases):
            for words in [form, *plurals(form)] if plural else [form]:
                self.add_words(kind, value, tokenise(words))

    def add_words(self, kind: str, value: Any, words: list[str]) -> None:
        """Add one phrase as a list of tokens; no tokens, no phrase."""
        node = self._root
        for word in words:
            node = node.setdefault(word, {})
        if words:
            node[_MEANING] = (kind, value)

    def scan(self, tokens: list[str]) -> Iterator[Tag]:
        """Yield the phrases of a text from left to right, the longest at each place, none over another."""
        root, place, length = self._root, 0, len(tokens)
        while place < length:
            node = root.get(tokens[place])
            if node is None:
                place += 1
                continue
            end, meaning, ahead = place + 1, node.get(_MEANING), place + 1
            while ahead < length:
                node = node.get(tokens[ahead])
                if node is None:
                    break
                ahead += 1
                if _MEANING in node:
                    end, meaning = ahead, node[_MEANING]
            if meaning is not None:
                yield Tag(place, end, *meaning)
            place = end

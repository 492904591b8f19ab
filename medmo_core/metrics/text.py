"""Texts reduced to what two annotators would call the same."""

import re
import unicodedata
from typing import Any

from ..findings import MAX_TEXT

_THINK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_NOT_WORD = re.compile(r"[^\w.%/+-]+|_+")
_EDGE_MARKS = re.compile(r"(?<!\d)[.](?!\d)|[.](?=\s|$)|(?<!\w)[-/+]+(?!\d)|[-/+]+(?=\s|$)")
_HYPHEN = re.compile(r"(?<=[a-z])-(?=[a-z])")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def completion_text(completion: Any) -> str:
    """Return the text of a completion: a string, or a chat whose last message holds it; anything else is empty."""
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        completion = completion[-1].get("content")
    return completion[:MAX_TEXT] if isinstance(completion, str) else ""


def final_answer(text: str) -> str:
    """Return what stands after thinking, inside answer tags where there are any."""
    text = _THINK.sub("", text).rpartition("</think>")[2]
    tagged = _ANSWER.search(text)
    return (tagged.group(1) if tagged else text).strip()


def normalise(text: str) -> str:
    """Return a text in lower case without articles, punctuation, hyphens between letters, and doubled spaces.

    Numbers keep their sign and decimal point.
    """
    text = unicodedata.normalize("NFKC", text[:MAX_TEXT]).casefold()
    text = _HYPHEN.sub(" ", _NOT_WORD.sub(" ", text))
    return " ".join(_ARTICLE.sub(" ", _EDGE_MARKS.sub(" ", text)).split())

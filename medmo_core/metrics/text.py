"""Texts reduced to what two annotators would call the same."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from ..boxes.recognise import without_thinking
from ..findings import MAX_TEXT

_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_NOT_WORD = re.compile(r"[^\w.%/+-]+|_+")
_EDGE_MARKS = re.compile(r"(?<!\d)[.](?!\d)|[.](?=\s|$)|(?<!\w)[-/+]+(?!\d)|[-/+]+(?=\s|$)")
_HYPHEN = re.compile(r"(?<=[a-z])-(?=[a-z])")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def completion_text(completion: Any) -> str:
    """Return the text of a completion; anything that has none is empty.

    Args:
        completion: a string, a message, or a chat whose last message counts. The content of a message is a string or a
            list of parts (`{"type": "text", "text": ...}`), whose texts are joined; other parts say nothing.
    """
    message: Any = completion[-1] if isinstance(completion, list | tuple) and completion else completion
    if _has(message, "content"):
        completion = message["content"]
    if isinstance(completion, str):
        return completion
    parts = completion if isinstance(completion, list | tuple) else ()
    texts = (part["text"] for part in parts if _has(part, "text"))
    return "".join(text for text in texts if isinstance(text, str))


def _has(value: Any, key: str) -> bool:
    return isinstance(value, Mapping) and key in value


def final_answer(text: str) -> str:
    """Return what stands after thinking, inside answer tags where there are any."""
    text = without_thinking(text)
    tagged = _ANSWER.search(text)
    return (tagged.group(1) if tagged else text).strip()


def normalise(text: str) -> str:
    """Return a text in lower case without articles, punctuation, hyphens between letters, and doubled spaces.

    Numbers keep their sign and decimal point.
    """
    text = unicodedata.normalize("NFKC", text[:MAX_TEXT]).casefold()
    text = _HYPHEN.sub(" ", _NOT_WORD.sub(" ", text))
    return " ".join(_ARTICLE.sub(" ", _EDGE_MARKS.sub(" ", text)).split())

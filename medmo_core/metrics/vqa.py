"""Visual question answering: is an answer right?

Protocol, by the type of the true answer, after thinking and answer tags are taken off:

- yesno: the first word decides; an answer that also says the opposite word is wrong.
- choice: the letter, the text of the choice, or letter and text; a letter with another choice's text is wrong.
- open, numeric: one number, equal to within half a unit of the true one's last digit, in the same unit (lengths
  convert; a missing unit is taken for the true one).
- open, else: equal after normalisation (case, articles, punctuation, hyphens, spaces, British spelling) and with one
  name for all that mean the same (`medmo_core.findings.synonyms`).

Anything else, an empty text among it, is wrong.
"""

import math
import re
from typing import TYPE_CHECKING

from ..errors import InputError
from ..findings.synonyms import one_name
from .text import completion_text, final_answer, normalise

if TYPE_CHECKING:
    from ..data.records.sample import Answer

VQA_TYPES = ("yesno", "choice", "open")
_OPPOSITE = {"yes": "no", "no": "yes"}
_LEAD_IN = re.compile(r"^(?:(?:final )?answer(?: is)?|it is)\s+(?=\S)")
_ANSWER_IS = re.compile(r"^\s*(?:the )?(?:final )?answer(?: is)?\W*", re.IGNORECASE)
_LETTER = re.compile(r"^\W*([A-Za-z])\s*(?:[).:,\]]\s*(.*))?$", re.DOTALL)
_QUANTITY = re.compile(r"([-+]?\d+(?:\.\d+)?)\s*(%|[a-z\u03bc]+)?")
_MILLIMETRES = {
    **dict.fromkeys(("mm", "millimetre", "millimetres", "millimeter", "millimeters"), 1.0),
    **dict.fromkeys(("cm", "centimetre", "centimetres", "centimeter", "centimeters"), 10.0),
    **dict.fromkeys(("inch", "inches"), 25.4),
    **dict.fromkeys(("um", "\u03bcm", "micrometre", "micrometres", "micrometer", "micrometers"), 1e-3),
    **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), 1000.0),
}


def vqa_correct(text: str, answer: "Answer") -> bool:
    """Say whether `text` answers as `answer` does; the module's docstring states the protocol.

    Raises:
        ValueError: the answer is of a type that is not a VQA answer.
    """
    said = final_answer(completion_text(text))
    if answer.type not in VQA_TYPES:
        raise ValueError(f"vqa_correct: answer type {answer.type!r}, expected one of {', '.join(VQA_TYPES)}")
    if answer.type == "yesno":
        return _says(said) == _yes_or_no(answer.value)
    if answer.type == "choice":
        return _chosen(said, tuple(answer.choices or ())) == _true_choice(answer)
    truth = normalise(str(answer.value))
    quantity = _QUANTITY.fullmatch(truth)
    if quantity:
        return _same_quantity(_without_lead_in(normalise(said)), quantity)
    return bool(truth) and _named(_without_lead_in(normalise(said))) == _named(truth)


def _without_lead_in(text: str) -> str:
    return _LEAD_IN.sub("", text)


def _named(text: str) -> str:
    return normalise(one_name(text))


def _yes_or_no(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    word = normalise(str(value))
    if word not in _OPPOSITE:
        raise InputError(f"a yesno answer has the value {value!r}, expected yes or no")
    return word


def _says(text: str) -> str:
    """Return `yes`, `no`, or an empty text when it is neither or both."""
    words = re.findall(r"[a-z]+", _without_lead_in(normalise(text)))
    if not words or words[0] not in _OPPOSITE:
        return ""
    return "" if _OPPOSITE[words[0]] in words[1:] else words[0]


def _letter_index(letter: str, choices: tuple[str, ...]) -> int | None:
    index = ord(letter.casefold()) - ord("a")
    return index if 0 <= index < max(len(choices), 1) else None


def _true_choice(answer: "Answer") -> int | str:
    """Return the index of the right choice, or its text where no choices are listed."""
    value, choices = str(answer.value), tuple(answer.choices or ())
    texts = [normalise(choice) for choice in choices]
    if normalise(value) in texts:
        return texts.index(normalise(value))
    index = _letter_index(value.strip(), choices) if len(value.strip()) == 1 and choices else None
    if choices and index is None:
        raise InputError(f"a choice answer has the value {value!r}, which is neither one of {choices} nor its letter")
    return normalise(value) if index is None else index


def _chosen(text: str, choices: tuple[str, ...]) -> int | str | None:
    """Return the index of the chosen choice; None where it is not clear; without choices, the text itself."""
    if not choices:
        return _without_lead_in(normalise(text))
    exact = [choice.strip().casefold() for choice in choices]
    if text.strip().casefold() in exact:
        return exact.index(text.strip().casefold())
    lettered = _LETTER.match(_ANSWER_IS.sub("", text))
    if lettered:
        index = _letter_index(lettered.group(1), choices)
        rest = normalise(lettered.group(2) or "")
        return index if index is not None and rest in ("", normalise(choices[index])) else None
    texts, plain = [normalise(choice) for choice in choices], _without_lead_in(normalise(text))
    return texts.index(plain) if plain in texts else None


def _same_quantity(said: str, truth: re.Match[str]) -> bool:
    found = _QUANTITY.fullmatch(said)
    if found is None:
        return False
    number, unit = float(found.group(1)), found.group(2) or truth.group(2)
    target, true_unit = float(truth.group(1)), truth.group(2)
    if unit != true_unit:
        if unit not in _MILLIMETRES or true_unit not in _MILLIMETRES:
            return False
        number *= _MILLIMETRES[unit] / _MILLIMETRES[true_unit]
    decimals = len(truth.group(1).partition(".")[2])
    slack = 0.0 if decimals == 0 and true_unit is None else 0.5 * 10.0**-decimals
    return math.isclose(number, target, rel_tol=1e-9, abs_tol=slack)

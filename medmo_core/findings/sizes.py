"""Sizes in text: the largest diameter in mm of "8 mm", "2 x 3 cm", "1-2 cm"; only numbers are read."""

from collections.abc import Sequence

UNITS: dict[float, str] = {1.0: "mm; millimeter; millimetre", 10.0: "cm; centimeter; centimetre", 25.4: "inch; inches"}
"""Millimetres -> words for as much."""

_JOINS = frozenset({"x", "by", "to", "mm", "cm"})
_DISTANCE = frozenset({"above", "below", "from", "proximal", "distal", "superior", "inferior", "beyond", "cephalad"})
_MAX_WORDS = 9
_MAX_DIGITS = 9  # characters of a number; no length in a body has more


def size_mm(tokens: Sequence[str], start: int, end: int, factor: float) -> float | None:
    """Return the largest of the numbers before a unit.

    Args:
        tokens: tokens of the text.
        start: index of the unit's first token.
        end: index behind the unit's last token.
        factor: millimetres of the unit.

    Returns:
        A diameter in mm; None where nothing there is a number, or the length is a distance ("3 cm above the carina").
    """
    if not _DISTANCE.isdisjoint(tokens[end : end + 1]):
        return None
    found: list[float] = []
    for word in reversed(tokens[max(0, start - _MAX_WORDS) : start]):
        if word[0].isdecimal() and len(word) <= _MAX_DIGITS:
            found.append(float(word))
        elif word not in _JOINS:
            break
    return max(found) * factor if found and max(found) > 0 else None

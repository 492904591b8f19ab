"""Sides and places of findings, where adjectives are joined, denied, or stand behind a preposition."""

import pytest

from medmo_core.findings import Claim, read_claims

MARKS = {"present": "+", "absent": "-", "uncertain": "?"}


def said(text: str) -> list[str]:
    """Claims as short words with side and place: +right nodule @upper lobe."""
    return [
        " ".join(word for word in (MARKS[c.status] + c.side, c.finding, f"@{c.site}" if c.site else "") if word)
        for c in read_claims(text)
        if isinstance(c, Claim)
    ]


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("No left or right effusion.", ["-left pleural effusion", "-right pleural effusion"]),
        ("No right or left pneumothorax is seen.", ["-right pneumothorax", "-left pneumothorax"]),
        ("Left and right effusions.", ["+left pleural effusion", "+right pleural effusion"]),
        ("Possible left or right nodule.", ["?left nodule", "?right nodule"]),
    ],
)
def test_joined_sides_are_both_named(text: str, claims: list[str]) -> None:
    assert said(text) == claims

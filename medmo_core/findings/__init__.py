"""Findings read from the text of reports: chest radiographs in English first; research use only.

`read_claims(text)` returns what a text claims. `docs/factuality.md` says how well, measured against human codes.
"""

from .anatomy import STRUCTURES, UNPAIRED, sites_agree
from .names import kinds_of
from .phrases import MAX_TEXT
from .reader import Claim, canonical, read_claims, sides_of
from .scope import ABSENT, PRESENT, UNCERTAIN

__all__ = [
    "ABSENT",
    "MAX_TEXT",
    "PRESENT",
    "STRUCTURES",
    "UNCERTAIN",
    "UNPAIRED",
    "Claim",
    "canonical",
    "kinds_of",
    "read_claims",
    "sides_of",
    "sites_agree",
]

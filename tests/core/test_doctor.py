"""The doctor names every room, every optional package, and the fix for what is absent."""

from pathlib import Path

import pytest

import medmo_kernels
from medmo_core import doctor


def test_every_room_says_where_it_runs() -> None:
    folder = Path(medmo_kernels.__path__[0])
    expected = {p.parent.name for p in folder.glob("*/op.py")}
    told = dict(doctor.rooms())
    assert set(told) == expected
    assert all("CPU" in text or "device" in text for text in told.values())


def test_an_absent_package_comes_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "pydicom" else "1.0")
    text = doctor.describe()
    assert 'absent: pip install "medmo[medical]"' in text
    assert text.count("absent:") == 1


def test_main_prints_it_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    shown = capsys.readouterr().out
    assert "torch" in shown and "box_match" in shown and "research use only" in shown

"""What others wrote is shown, and does nothing else to a terminal."""

import pytest

from medmo_core.data.records.faults import Fault
from medmo_core.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Röntgen 肝脏 a_b.png", "Röntgen 肝脏 a_b.png"),
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("ok\nmy.jsonl: 9 samples, 0 faults\r", r"ok\nmy.jsonl: 9 samples, 0 faults\r"),
        ("\x9b31m", r"\x9b31m"),
        ("gpj\u202e.exe", r"gpj\u202e.exe"),
        ("\ud800", r"\ud800"),
    ],
)
def test_only_what_is_simply_shown_stays(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode("utf-8")


def test_a_fault_is_one_harmless_line() -> None:
    fault = Fault("\x1b[2J", "is\nbad", "a\ttext", "\x07", file="\x1b[31mx.jsonl", line=3)
    assert str(fault) == r"\x1b[31mx.jsonl:3: \x1b[2J: is\nbad; expected a\ttext; fix: \x07"

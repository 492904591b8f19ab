"""What others wrote is shown, and does nothing else to a terminal."""

import html

import pytest

from medmo_core.data.records.faults import Fault
from medmo_core.printable import markdown, printable


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


@pytest.mark.parametrize(
    "text",
    [
        "vqa/ct-abdomen-005/whole/form",
        "![x](http://evil.example/p.png) | [a](b) |",
        "<script>alert(1)</script> &amp; <http://a.b> a@b.cd",
        "**bold** __it__ a_b_ _c `code` ~~gone~~ # head\\",
        "line\n\n# two\t| three",
        "\x1b[31mred",
    ],
)
def test_markdown_shows_a_text_and_does_nothing_else(text: str) -> None:
    """Rendered by markdown-it, a cell of a table holds the text, and the row has no other cell."""
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    page = reader.render(f"| a | b |\n|---|---|\n| {markdown(text)} | end |\n")
    shown = html.escape(printable(" ".join(text.split())), quote=False)
    assert f"<tr>\n<td>{shown}</td>\n<td>end</td>\n</tr>" in page.replace("&quot;", '"')

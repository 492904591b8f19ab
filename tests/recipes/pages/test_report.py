"""The report is one file that shows what it was given and nothing it was not."""

from pathlib import Path

from PIL import Image

from medmo_recipes.pages.report import Cell, Picture, Report, Table, Verdict, curves_png, smooth


def make_report() -> Report:
    return Report(
        title="A title",
        subtitle="below it",
        verdicts=[Verdict("boxes beat a constant", "+0.1 [0.05, 0.15]", True), Verdict("pigs fly", "0 <of> 3", False)],
        tables=[Table("Scores", "a note", ["metric", "random"], [[Cell("IoU", "n = 3"), Cell("0.1")]])],
        curves={
            "align": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}],
            "reinforce": [{"step": 1, "reward": 0.1}],
        },
        gallery=[Picture(Image.new("RGB", (8, 8), "red"), "where is it?")],
        gallery_note="green is true",
        provenance=["seed 0"],
    )


def test_the_page_holds_everything_and_loads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    make_report().write(path)
    html = path.read_text(encoding="utf-8")
    expected = ("A title", "boxes beat a constant", "n = 3", "where is it?", "green is true", "seed 0")
    assert all(text in html for text in (*expected, "Research use only"))
    assert html.count("data:image/png;base64,") == 2
    assert "http" not in html.replace("http-equiv", "")
    assert '<td class="yes">yes</td>' in html and '<td class="no">no</td>' in html


def test_markup_in_a_text_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    make_report().write(path)
    assert "0 &lt;of&gt; 3" in path.read_text(encoding="utf-8")


def test_curves_are_a_png() -> None:
    assert curves_png({"align": [{"step": 1, "loss": 1.0}]})[:8] == b"\x89PNG\r\n\x1a\n"


def test_smoothing_starts_at_the_first_value_and_stays_inside() -> None:
    assert smooth([4.0, 0.0, 0.0], weight=0.5) == [4.0, 2.0, 1.0]

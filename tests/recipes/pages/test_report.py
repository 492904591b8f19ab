"""The report is one file that shows what it was given and nothing it was not."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from medmo_core.datasets.embedded.contact_sheet import name_places
from medmo_recipes.pages.page_templates import TEMPLATES, page_template
from medmo_recipes.pages.report import Cell, Picture, Report, Table, Verdict, curves_figure, curves_png
from medmo_recipes.training.monitoring.smoothing import running_median


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
        gallery=[Picture(Image.new("RGB", (8, 8), "red"), "IoU 0.5", "best", "where is it?", "[<box>]")],
        gallery_note="green is true",
        provenance=["seed 0"],
        commands=["torchrun a&b"],
        repeated={"pigs fly": "held in 1 of 10 <runs>", "boxes beat a constant": ""},
        links={"completions": "reinforce/rollouts/index.html"},
    )


def test_the_page_holds_everything_and_loads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    make_report().write(path)
    html = path.read_text(encoding="utf-8")
    expected = ("A title", "boxes beat a constant", "n = 3", "where is it?", "green is true", "seed 0")
    assert all(text in html for text in (*expected, "Research use only"))
    assert html.count("data:image/png;base64,") == 2
    assert "torchrun a&amp;b" in html and '<a href="reinforce/rollouts/index.html">completions</a>' in html
    assert "<strong>best</strong>" in html and "<code>[&lt;box&gt;]</code>" in html
    assert html.count('type="checkbox"') == 1 and "@media print" in html and "prefers-color-scheme: dark" in html
    assert "http" not in html.replace("http-equiv", "")
    assert '<td class="yes">yes</td>' in html
    assert '<td class="no">no<small>held in 1 of 10 &lt;runs&gt;</small></td>' in html


def test_markup_in_a_text_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    make_report().write(path)
    assert "0 &lt;of&gt; 3" in path.read_text(encoding="utf-8")


def test_curves_are_a_png() -> None:
    assert curves_png({"align": [{"step": 1, "loss": 1.0}]})[:8] == b"\x89PNG\r\n\x1a\n"


def test_smoothing_leaves_out_spikes_and_starts_with_enough_values() -> None:
    """One line for the report and for summary.png: medians over two values before and two after."""
    spiked = [float(i) + (1000.0 if i == 50 else 0.0) for i in range(100)]
    line = running_median(spiked)
    assert line is not None and line[10] == 10.0 and line[49:52] == [49.0, 51.0, 52.0]
    assert line[:3] == [0.0, 1.0, 2.0] and line[-3:] == [97.0, 98.0, 99.0], "no lag behind a trend at the ends"
    assert running_median(spiked[:99]) is None


@pytest.mark.parametrize(("steps", "legend"), [(3, ["each step"]), (200, ["each step", "running median"])])
def test_every_line_of_the_curves_is_named(steps: int, legend: list[str]) -> None:
    points = [{"step": step, "loss": 1.0 / step} for step in range(1, steps + 1)]
    (axes,) = curves_figure({"align": points, "instruct": []}).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == legend
    (empty,) = curves_figure({"align": []}).axes
    assert empty.get_legend() is None


def test_stages_follow_one_another_with_a_border_and_rewards_stand_apart() -> None:
    losses, rewards = ([{"step": step, key: 1.0} for step in (1, 2, 5)] for key in ("loss", "reward"))
    left, right = curves_figure({"align": losses, "instruct": losses, "reinforce": rewards}).axes
    assert [line.get_xdata()[0] for line in left.lines] == [1, 6, 5], "the second begins after the first, at a border"
    assert [text.get_text().strip() for text in left.texts] == ["align", "instruct"] and left.get_title() == "loss"
    assert [text.get_text().strip() for text in right.texts] == ["reinforce"] and len(right.lines) == 1


def test_names_on_the_contact_sheet_stand_apart() -> None:
    """Below the picture, in lines; over it they hid one another."""
    names = [f"right structure {number}" for number in range(12)]
    places = name_places(names, 320)
    assert 5 < len(places) < 12, "what finds no room is left out"
    for name, (x, y) in places.items():
        others = [left for other, (left, top) in places.items() if top == y and left > x and other != name]
        assert all(left >= x + 80 for left in others) and x < 320 and y <= 28


def test_every_page_names_the_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for template in TEMPLATES.glob("*.j2"):
        with pytest.raises(ImportError, match=r'the page needs jinja2: pip install "medmo\[demo\]"'):
            page_template(template.name, "the page")

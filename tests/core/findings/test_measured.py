"""The committed table of docs/factuality.md against the real reports, where they are installed."""

import math
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.page_section import section_of
from medmo_core.findings.phrases import tokenise
from tools import measure_findings as tool

ROOT = Path(__file__).resolve().parents[3]
installed = pytest.mark.skipif(
    tool.archive() is None, reason="needs the reports: pip install --no-deps torchxrayvision==1.5.7"
)


@pytest.fixture(scope="module")
def reports() -> list[Any]:
    return tool.load_reports()


@installed
def test_the_table_is_what_the_reader_does(reports: list[Any]) -> None:
    assert tool.table(reports) == section_of(tool.PAGE, "tools.measure_findings"), "run tools.measure_findings --write"


@installed
def test_the_bars_hold_on_odd_ids(reports: list[Any]) -> None:
    odd = tool.measure([report for report in reports if report.number % 2])
    held = tool.held_to_bars(reports)
    assert len(held) > 30
    assert [name for name in held if not odd[name].holds] == []


def _runs(text: str, length: int = 7) -> set[tuple[str, ...]]:
    """Runs of words within a sentence."""
    found = set()
    for sentence in re.split(r"[.;:\n|]", text):
        words = tokenise(sentence)
        found.update(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
    return found


def _written_files() -> dict[str, list[Path]]:
    """Return the files that were written with the reports at hand, by folder."""
    folders = ("medmo_core/findings", "medmo_core/rewards", "medmo_core/metrics", "tests/core/findings")
    return {folder: sorted((ROOT / folder).glob("*.py")) for folder in folders}


def test_every_folder_that_is_searched_has_files() -> None:
    assert [folder for folder, files in _written_files().items() if not files] == []


@installed
def test_no_sentence_of_a_report_is_copied(reports: list[Any]) -> None:
    """No seven words in a row of any report stand in the files that were written with the reports at hand."""
    said = set().union(*(_runs(report.text) for report in reports))
    assert said & _runs(reports[0].text), "the check finds what is there"
    for path in [*chain.from_iterable(_written_files().values()), tool.PAGE, ROOT / "tools/measure_findings.py"]:
        assert not said & _runs(path.read_text(encoding="utf-8")), path.name


def test_intervals_against_the_equation_they_solve() -> None:
    """Wilson's ends are where the share lies z standard errors of the end itself away."""
    for hits, trials in ((0, 5), (3, 5), (50, 56), (200, 200)):
        share, low, high = tool.wilson(hits, trials)
        for end in (low, high):
            if 0 < end < 1 and not math.isclose(end, share):
                assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / trials), rel=1e-9)
        assert low + 1e-12 >= 0 and high <= 1 + 1e-12 and low <= share <= high + 1e-12
    assert all(math.isnan(value) for value in tool.wilson(0, 0))


def test_codes_and_claims_are_counted() -> None:
    def report(number: int, text: str, *codes: tuple[str, ...]) -> Any:
        return tool.Report(number, text, codes)

    found = tool.measure([
        report(1, "Scar.", ("cicatrix", "lung")),
        report(2, "Possible scar.", ("cicatrix",)),
        report(3, "A scar.", ("normal",)),
        report(4, "Spurs.", ("spine", "degenerative")),
    ])  # fmt: skip
    assert found["scar"] == tool.Counts(both=1, only_read=1, only_coded=1)
    assert found["degenerative change"] == tool.Counts(both=1, only_read=0, only_coded=0)

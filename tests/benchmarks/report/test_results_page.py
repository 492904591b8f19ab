"""docs/results.md and the figures of README.md come from committed results; README has no others."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import benchmarks.report.results_page as tool
from benchmarks.report.page_section import markers, section_of
from benchmarks.studies.quickstart_runs.records import FILE, RunRecord, StudyRecord
from benchmarks.suite import schema

if TYPE_CHECKING:
    from conftest import Planter

MEASURED = re.compile(
    r"""(?<!\w)[+-]?\d+\.\d+     # decimals
      | \d[\d.]*\s*(?:x|times)\b  # ratios
      | \d[\d.,]*\s*%           # shares
      | \d[\d.,]*\s*(?:us|ms|s|seconds|minutes|hours|GB/s|TFLOP/s|(?:tokens|images|samples)/s)\b
    """,
    re.VERBOSE,
)
NOT_MEASURED = {
    "2602.06965": "an arXiv number",
    "3.11": "a version of Python",
    "2.11": "a version of torch",
    "3.6": "a version of triton",
    "2.0": "a licence",
}


def outside_the_figures(text: str) -> str:
    """Return what is written by hand, without code blocks: their numbers are settings."""
    begin, end = markers("benchmarks.report.results_page")
    before, rest = text.split(begin)
    return re.sub(r"```.*?```", "", before + rest.split(end)[1], flags=re.DOTALL)


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return copies of docs/results.md and README.md, which the tool then reads and writes."""
    copies = tmp_path / "results.md", tmp_path / "README.md"
    for name, path in zip(("PAGE", "README"), copies, strict=True):
        shutil.copy(getattr(tool, name), path)
        monkeypatch.setattr(tool, name, path)
    return copies


def test_the_figures_are_those_of_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("number", [0, 1])
def test_a_changed_figure_is_refused_and_written_anew(
    pages: tuple[Path, Path], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pages[number].read_text(encoding="utf-8")
    changed = re.sub(r"\*\*0\.\d{3}\*\*", "**0.999**", before, count=1)
    assert changed != before
    pages[number].write_text(changed, encoding="utf-8")
    assert tool.main([]) == 1
    assert capsys.readouterr().err == (
        f"{pages[number].name} is out of date: python -m benchmarks.report.results_page --write\n"
    )
    assert tool.main(["--write"]) == 0
    assert pages[number].read_text(encoding="utf-8") == before


def test_readme_shows_few_lines_of_figures() -> None:
    assert len(section_of(tool.README, tool.TOOL).splitlines()) <= 8


def test_no_other_figure_stands_in_readme() -> None:
    found = {match.strip() for match in MEASURED.findall(outside_the_figures(tool.README.read_text(encoding="utf-8")))}
    assert found <= set(NOT_MEASURED), "measured figures belong into benchmarks/report/results_page.py"
    assert set(NOT_MEASURED) <= found, "an allowance that nothing needs"


@pytest.mark.parametrize(
    "text", ["VQA 0.713 after", "2x faster", "3 times as fast", "in 27 minutes", "12 % less", "40 ms", "200 images/s"]
)
def test_a_figure_by_hand_is_seen(text: str) -> None:
    assert MEASURED.search(outside_the_figures(f"{text}\n{''.join(markers('benchmarks.report.results_page'))}"))


def test_verdicts_and_losses_follow_the_figures() -> None:
    run = json.loads(tool.QUICKSTART.read_text(encoding="utf-8"))
    claim = "After reinforce, greedy held-out mean IoU is above instruct's"
    for measured, holds, word in (
        ("+0.0200 [+0.0100, +0.0300], 9 questions", True, "**yes**"),
        ("+0.0200 [-0.0100, +0.0500], 9 questions", True, "**yes, within noise**"),
        ("-0.0200 [-0.0300, -0.0100], 9 questions", False, "**no**"),
    ):
        run["verdicts"] = [{"claim": claim, "measured": measured, "holds": holds}]
        assert f"{claim}: {word} ({measured}; meanwhile F1 " in tool.verdicts(run, None)
    full = run["stages"]["reinforce"]["grounding_iou_full"]
    for low, high, word in ((0.1, 0.2, "better than"), (-0.2, -0.1, "worse than"), (-0.1, 0.1, "level with")):
        full.update(gain_low=low, gain_high=high)
        assert f"grounding is {word} the constant box" in tool.reading(run)
    for low, words in ((-0.1, "Reports do not beat"), (0.1, "Reports beat")):
        run["stages"]["reinforce"]["report_fact_f1"]["gain_low"] = low
        assert words in tool.reading(run)


def test_the_suite_is_quoted_from_its_newest_cpu_result(
    plant: "Planter", steady: Callable[[float], tuple[float, ...]], tmp_path: Path
) -> None:
    place: dict[str, Any] = {"subject": "box_match", "case": "512 of 16 x 16"}
    ours, peer = plant.row("ours", steady(100.0), **place), plant.row("SciPy through the host", steady(500.0), **place)
    schema.write(plant.result(ours, peer), tmp_path / "cpu-a/now.json")
    shown = tool.newest_on_cpu(tmp_path)
    text = tool.suite(shown)
    assert "a processor, 1 torch thread, commit abc123def: 1 comparisons" in text
    assert "512 of 16 x 16, forward | SciPy through the host | at least 4x | 5.00x [5.00, 5.00] | met |" in text
    assert "not measured yet" in text, "the other targets are not hidden"
    block = tool.readme_block(json.loads(tool.QUICKSTART.read_text(encoding="utf-8")), shown, None)
    assert block.splitlines()[-1] == (
        "Speed against the best peer (a processor, 1 torch thread, commit abc123def): faster in 1 of 1 comparisons, "
        "level in 0, slower in 0."
    )
    wrong = plant.row("ours", status="wrong", reason="off by 3", **place)
    schema.write(plant.result(wrong, peer), tmp_path / "cpu-a/now.json")
    with pytest.raises(ValueError, match="ours is wrong"):
        tool.newest_on_cpu(tmp_path)


@pytest.fixture
def study(make_run: Callable[..., RunRecord]) -> StudyRecord:
    """Three runs, whose IoU after three stages is 0.35, 0.55 and 0.45, and whose first claim held in two."""
    claim = "After instruct, VQA beats the majority answer per template"
    runs = [make_run(seed, iou, verdicts={claim: iou > 0.35}) for seed, iou in enumerate((0.3, 0.5, 0.4))]
    return StudyRecord("tiny", "0123456789ab", runs)


def test_a_study_is_told_beside_its_median_run(study: StudyRecord) -> None:
    run = json.loads(tool.QUICKSTART.read_text(encoding="utf-8"))
    row = next(line for line in tool.readme_block(run, [], study).splitlines() if "IoU" in line)
    last = run["stages"]["reinforce"]["grounding_iou"]
    assert row == f"| Grounding mean IoU | **{last['value']:.3f}** (0.350 to 0.550) | {last['baseline']:.3f} |"
    assert "after three stages, median run of 3 (lowest to highest)" in tool.readme_block(run, [], study)
    assert "; held in 2 of 3 runs of the study." in tool.verdicts(run, study)
    assert "of the 3 of [quickstart_runs.md](quickstart_runs.md)" in tool.about(run, study)
    assert "ended with a grounding mean IoU from 0.350 to 0.550." in tool.about(run, study)
    assert "quickstart_runs.md" not in tool.about(run, None)


def test_the_run_shown_must_be_the_median_of_the_study(
    study: StudyRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "STUDY", tmp_path)
    run = json.loads(tool.QUICKSTART.read_text(encoding="utf-8"))
    assert tool.committed_study(run) is None
    study.write(tmp_path / FILE)
    with pytest.raises(ValueError, match="quickstart.json is not the median run of the study, seed-2-2x1-machine"):
        tool.committed_study(run)
    run = {"seed": 2, "stages": study.runs[2].stages}
    assert tool.committed_study(run) == study
    with pytest.raises(ValueError, match="not the median run"):
        tool.committed_study({**run, "seed": 1})


def test_readme_says_one_run_only_while_there_is_no_study() -> None:
    by_hand = outside_the_figures(tool.README.read_text(encoding="utf-8"))
    assert ("One run; machines round differently" in by_hand) != (tool.STUDY / FILE).exists()

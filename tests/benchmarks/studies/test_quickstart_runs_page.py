"""What is published of the study: its spread, the tables, the summary in the package, and the median run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report.page_section import section_of
from benchmarks.studies.quickstart_runs.page import (
    AFTER_INSTRUCT,
    AFTER_REINFORCE,
    costs_table,
    judged_interval,
    machine_lines,
    runs_table,
    section,
    verdicts_table,
)
from benchmarks.studies.quickstart_runs.publishing import PLACES, TOOL, Places, publish
from benchmarks.studies.quickstart_runs.records import FILE, RunRecord, StudyRecord, read_study
from benchmarks.studies.quickstart_runs.spread import (
    median_run,
    score_of,
    spread,
    summarise,
    verdict_counts,
)
from medmo_core.errors import InputError
from medmo_recipes.commands.three_stages import recipe_digest
from medmo_recipes.pages.study_summary import summary_for


@pytest.fixture
def study(make_run: Callable[..., RunRecord]) -> StudyRecord:
    """Three runs, whose IoU after instruct is 0.3, 0.5 and 0.4."""
    return StudyRecord("tiny", "0123456789ab", [make_run(0, 0.3), make_run(1, 0.5), make_run(2, 0.4)])


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Return places in a folder of the test."""
    site = tmp_path / "site"
    site.mkdir()
    names = ("page.md", "summary.json", "metrics.json", "pictures.png")
    return Places(site / "figures", *(site / name for name in names))


def stored(study: StudyRecord, folder: Path) -> Path:
    """Write a study, and the files of its runs, as the runs leave them."""
    for run in study.runs:
        (folder / run.name / "quickstart").mkdir(parents=True)
        for name in ("metrics.json", "held_out.png"):
            (folder / run.name / "quickstart" / name).write_text(f"{name} of {run.seed}")
    folder.mkdir(exist_ok=True)
    study.write(folder / FILE)
    return folder


def test_spread_and_median_are_those_of_the_runs(study: StudyRecord, make_run: Callable[..., RunRecord]) -> None:
    found = spread(study.runs, lambda run: score_of(run, "instruct", "grounding_iou"))
    assert found == pytest.approx((0.4, 0.3, 0.5))
    assert median_run(study.runs).seed == 2
    assert median_run([*study.runs, make_run(3, 0.45)]).seed == 2, "of two middle ones the lower"
    assert median_run([*study.runs, make_run(3, 0.35)]).seed == 3
    assert verdict_counts(study.runs) == {"boxes beat a constant": 2, "pigs fly": 0}


def test_a_figure_that_some_runs_lack_is_that_of_the_others(
    study: StudyRecord, make_run: Callable[..., RunRecord]
) -> None:
    def said(run: RunRecord) -> float | None:
        return score_of(run, "instruct", "grounding_iou_said")

    assert spread(study.runs, said) is None
    run = make_run(3, 0.4)
    told = {**run.stages, "instruct": {"grounding_iou_said": {"value": 0.6}}}
    assert spread([*study.runs, replace(run, stages=told)], said) == (0.6, 0.6, 0.6)


def test_runs_that_judge_other_claims_are_refused(study: StudyRecord, make_run: Callable[..., RunRecord]) -> None:
    with pytest.raises(InputError, match="judge other claims: .'pigs fly'.; run the study anew"):
        verdict_counts([*study.runs, make_run(3, 0.4, verdicts={"boxes beat a constant": True})])


def test_every_run_has_a_row_above_mean_and_ends(study: StudyRecord) -> None:
    rows = runs_table(study.runs, AFTER_INSTRUCT).splitlines()
    head = "| seed, layout | IoU | constant box | over the constant box | IoU on training images | denied | invented |"
    assert rows[0].startswith(head), "a column that no run has is left out"
    assert rows[2] == (
        "| 0, 2x1 | 0.300 [0.200, 0.400] | 0.200 | +0.100 [-0.050, +0.500] within noise "
        "| 0.500 | 0.100 | 0.050 | 0.700 |"
    )
    assert rows[3].startswith("| 1, 2x1 | 0.500 [0.400, 0.600] | 0.200 | +0.300 [+0.150, +0.500] above | 0.700 |")
    assert rows[4].startswith("| **2, 2x1** | 0.400 "), "the median run is in bold"
    assert rows[5] == "| mean | 0.400 | 0.200 | +0.200 | 0.600 | 0.100 | 0.050 | 0.700 |"
    assert rows[6] == "| lowest | 0.300 | 0.200 | +0.100 | 0.500 | 0.100 | 0.050 | 0.700 |"
    assert rows[7] == "| highest | 0.500 | 0.200 | +0.300 | 0.700 | 0.100 | 0.050 | 0.700 |"
    after = runs_table(study.runs, AFTER_REINFORCE).splitlines()
    assert after[2] == (
        "| 0, 2x1 | 0.350 [0.250, 0.450] | +0.050 [+0.010, +0.090] above | 0.730 | "
        "+0.030 [-0.020, +0.100] within noise | 10.0 | 20.0 |"
    )
    assert after[5] == "| mean | 0.450 | +0.050 | 0.740 | +0.040 | 11.0 | 20.0 |"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.2, "[+0.100, +0.200] above"),
        (-0.2, -0.1, "[-0.200, -0.100] below"),
        (0.0, 0.2, "[+0.000, +0.200] within noise"),
        (None, None, ""),
    ],
)
def test_a_difference_is_told_by_its_interval(low: float | None, high: float | None, said: str) -> None:
    assert judged_interval(low, high) == said


def test_verdicts_costs_and_machines_are_counted(study: StudyRecord, make_run: Callable[..., RunRecord]) -> None:
    verdicts = verdicts_table(study.runs).splitlines()
    assert verdicts[2] == "| boxes beat a constant | 2 of 3 | 0, 2x1 |"
    assert verdicts[3] == "| pigs fly | 0 of 3 | 0, 2x1; 1, 2x1; 2, 2x1 |"
    other = make_run(4, 0.4, "1x2", "sse", machine={**study.runs[0].machine, "instructions": "DEFAULT", "cores": 1})
    costs = costs_table([*study.runs, other]).splitlines()
    assert costs[0] == "| part | 2x1, s | 2x1, CPU s | 1x2, s | 1x2, CPU s |"
    assert costs[3] == "| instruct | 101 | 201 | 104 | 204 |"
    assert machine_lines([*study.runs, other]).splitlines() == [
        "- A processor, 2 cores, AVX2 instructions, torch 2.13.0, commit abc: 3 runs.",
        "- A processor, 1 core, DEFAULT instructions, torch 2.13.0, commit abc: 1 run.",
    ]
    assert "| 4, 1x2, sse |" in runs_table([*study.runs, other], AFTER_INSTRUCT)


def test_publishing_writes_page_summary_and_the_median_run(study: StudyRecord, places: Places, tmp_path: Path) -> None:
    folder = stored(study, tmp_path / "study")
    assert publish(folder, places) == [
        places.figures / FILE, places.summary, places.page, places.metrics, places.pictures
    ]  # fmt: skip
    assert read_study(places.figures / FILE) == study == read_study(folder / FILE)
    assert section_of(places.page, TOOL) == section(study) and "| pigs fly | 0 of 3 |" in section(study)
    assert places.metrics.read_text() == "metrics.json of 2" and places.pictures.read_text() == "held_out.png of 2"
    summary = summary_for("0123456789ab", places.summary)
    assert summary is not None and summary.told("boxes beat a constant") == "held in 2 of 3 runs of the study"
    assert summary.range_of("reinforce", "grounding_iou") == "study: 0.350 to 0.550"

    page = places.page.read_text()
    places.page.write_text(page.replace("0.350", "0.950").replace("# Runs of the quickstart", "# Mine"))
    places.metrics.write_text("of another run")
    assert len(publish(places.figures, places)) == 3, "the committed file alone writes the page again"
    assert places.page.read_text() == page.replace("# Runs of the quickstart", "# Mine")
    assert places.metrics.read_text() == "of another run"


def test_a_study_goes_on_elsewhere_from_what_is_published(
    study: StudyRecord, places: Places, tmp_path: Path, make_run: Callable[..., RunRecord]
) -> None:
    publish(stored(study, tmp_path / "study"), places)
    more = replace(study, runs=[*study.runs, make_run(3, 0.6)])  # the median stays: seed 2, whose folder is elsewhere
    folder = stored(replace(more, runs=more.runs[3:]), tmp_path / "elsewhere")
    more.write(folder / FILE)
    assert len(publish(folder, places)) == 3 and read_study(places.figures / FILE) == more
    assert places.metrics.read_text() == "metrics.json of 2"
    lower = replace(study, runs=[*more.runs, make_run(4, 0.2), make_run(5, 0.1)])  # the median is seed 0 by now
    lower.write(folder / FILE)
    with pytest.raises(InputError, match="seed-0-2x1-machine.*of the median run does not exist"):
        publish(folder, places)
    assert read_study(places.figures / FILE) == more


def test_what_says_nothing_is_not_published(
    study: StudyRecord, places: Places, tmp_path: Path, make_run: Callable[..., RunRecord]
) -> None:
    uneven = replace(study, runs=[*study.runs, make_run(0, 0.3, "1x2")])
    for name, shown, said in (
        ("debug", replace(study, size="debug"), "holds runs of size debug; only those of size tiny are published"),
        ("empty", replace(study, runs=[]), "the study has no finished run yet"),
        (
            "uneven",
            uneven,
            "lacks runs .machine.: seed 1 in 1x2, seed 2 in 1x2; its --out command makes them",
        ),
    ):
        with pytest.raises(InputError, match=said):
            publish(stored(shown, tmp_path / name), places)
    folder = stored(study, tmp_path / "study")
    (folder / "seed-2-2x1-machine/quickstart/held_out.png").unlink()
    with pytest.raises(InputError, match="held_out.png of the median run does not exist"):
        publish(folder, places)
    assert list(places.page.parent.iterdir()) == [], "nothing is written where something is refused"


def test_what_is_committed_agrees() -> None:
    """Page and summary are those of the committed file, and the recipe is today's; before a study there is neither."""
    path = PLACES.figures / FILE
    if not path.exists():
        assert not PLACES.page.exists() and not PLACES.summary.exists()
        return
    study = read_study(path)
    fix = f"python -m {TOOL} --table"
    assert section_of(PLACES.page, TOOL) == section(study), fix
    assert json.loads(PLACES.summary.read_text(encoding="utf-8")) == json.loads(json.dumps(vars(summarise(study)))), fix
    assert study.recipe == recipe_digest("tiny"), "the study is of another recipe: run it again, or remove it"
    quickstart = json.loads(PLACES.metrics.read_text(encoding="utf-8"))
    assert [v["claim"] for v in quickstart["verdicts"]] == list(summarise(study).held)

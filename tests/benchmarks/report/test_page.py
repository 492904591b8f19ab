"""The page of results: what it counts, what it refuses, and that the committed page is of the committed results."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks import bench_kernels, bench_modules, bench_recipes
from benchmarks.report import kernels_unmeasured as static_part
from benchmarks.report import page as report
from benchmarks.report import targets
from benchmarks.report.ratios import ceiling_share, contests, ratio
from benchmarks.report.targets import Judgement, Prediction, Target, judge
from benchmarks.suite import schema
from medmo_recipes.settings.section import ConfigError

if TYPE_CHECKING:
    from conftest import Planter

ROOT = Path(__file__).resolve().parents[3]
NAME = "2026-01-02-abc123def.json"
Steady = Callable[[float], tuple[float, ...]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Return a function that stores results and makes the page of them; without the slow static part."""
    monkeypatch.setattr(static_part, "sections", lambda: ["static"])

    def page_of(*results: schema.Result, names: tuple[str, ...] = (NAME,), device: str = "cpu-a") -> tuple[int, str]:
        for name, result in zip(names, results, strict=True):
            schema.write(result, tmp_path / "results" / device / name)
        status = report.main([], results=tmp_path / "results", target=tmp_path / "RESULTS.md")
        page = tmp_path / "RESULTS.md"
        return status, page.read_text(encoding="utf-8") if page.exists() else ""

    return page_of


def row_of(page: str, way: str) -> str:
    return next(line for line in page.splitlines() if f"| {way} |" in line)


def test_ways_are_told_with_ratio_rates_and_check(
    plant: "Planter", steady: Steady, make: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    work = {"bytes": 1e6, "flops": 4e6, "items": 32.0, "unit": "tokens"}
    rows = [
        plant.row("ours", steady(200.0), **work),
        plant.row("reference", steady(800.0), role="reference", **work),
        plant.row("SciPy", steady(500.0), **work),
        plant.row("slow", steady(900.0), **work),
        plant.row("xformers", reason="xformers not installed"),
        plant.row("Liger", status="wrong", reason="off by 2 from truth, allowed 1"),
    ]
    status, page = make(plant.result(*rows))
    assert status == 0
    ours = row_of(page, "**ours**")
    assert "2.50x [2.50, 2.50] to SciPy" in ours
    # 1 MB in 199 us; the copy of 1 MB takes 100 us here, the products 40 us; 32 tokens
    assert "| 5.03 | 0.0201 | 50% |" in ours and "| 160,966 |" in ours and "1e-07 / 1e-06, truth" in ours
    assert "4.00x" in row_of(page, "reference")
    assert "Absent: xformers (xformers not installed)." in page
    assert "🔴 **WRONG**: off by 2 from truth, allowed 1" in row_of(page, "Liger")
    assert "1 comparisons (a case in one direction), 1 of them with a peer that has a figure" in page
    assert "faster in 1, level in 0" in page and "Where a peer is faster" not in page
    assert (tmp_path / "results/plots/cpu-a-kernels.png").read_bytes()[:4] == b"\x89PNG"


def test_losses_come_first_and_are_marked(
    plant: "Planter", steady: Steady, make: Callable[..., tuple[int, str]]
) -> None:
    rows = [
        row
        for case, peer in (("won", 300.0), ("lost", 50.0), ("lost worse", 20.0), ("level", 100.1))
        for row in (plant.row("ours", steady(100.0)[::-1], case=case), plant.row("SciPy", steady(peer), case=case))
    ]
    _, page = make(plant.result(*rows))
    assert "faster in 1, level in 1 (the interval holds 1) and slower in 2" in page
    lost = page.split("worst first:")[1].split("Level:")[0]
    assert lost.index("lost worse") < lost.index("| lost |") and lost.count("🔴 **0.") == 2
    assert "🔴 **0.50x" in row_of(page.split("### Kernels")[1].split("| lost |")[1], "SciPy")


def test_a_second_timing_of_ours_is_shown_and_is_no_peer(
    plant: "Planter", steady: Steady, make: Callable[..., tuple[int, str]]
) -> None:
    status, page = make(plant.result(plant.row("ours", steady(100.0)), plant.row("ours, again", steady(80.0))))
    assert status == 0 and "no peer here" in row_of(page, "**ours**")
    assert "| 0.80x" in row_of(page, "ours, again"), "told without the mark of a loss"
    assert "0 of them with a peer" in page


def test_a_wrong_result_of_ours_is_refused(
    plant: "Planter", steady: Steady, make: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, page = make(
        plant.result(
            plant.row("ours", status="wrong", reason="off by 3 from truth, allowed 1"),
            plant.row("SciPy", steady(100.0)),
            plant.row("ours", steady(100.0), case="right"),
            plant.row("SciPy", steady(300.0), case="right"),
        )
    )
    assert status == 1
    said = capsys.readouterr().err
    assert f"{NAME}: giou, 7 pairs, forward: ours is wrong (off by 3 from truth, allowed 1)" in said
    wrong = page.split("#### giou")[1].split("| right |")[0]
    assert "ours has no figure" in row_of(wrong, "SciPy") and not re.search(r"\d\.\d\dx", wrong)
    assert "3.00x" in page, "the other comparison keeps its figure"


def test_an_invalid_file_stops_the_report(
    plant: "Planter", steady: Steady, make: Callable[..., tuple[int, str]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A result by hand whose check failed does not get in; files of another kind are not looked at."""
    folder = tmp_path / "results/cpu-a"
    folder.mkdir(parents=True)
    (folder / "other.json").write_text('{"arms": {}}', encoding="utf-8")
    status, _ = make(plant.result(plant.row("ours", steady(100.0))))
    assert status == 0
    text = (folder / NAME).read_text(encoding="utf-8")
    (folder / NAME).write_text(text.replace('"error": 1e-07', '"error": 1.0'), encoding="utf-8")
    assert report.main([], results=tmp_path / "results", target=tmp_path / "RESULTS.md") == 1
    said = capsys.readouterr().err
    assert NAME in said and "a check that passed" in said


def test_the_newest_of_each_device_is_shown_whole(
    plant: "Planter", steady: Steady, make: Callable[..., tuple[int, str]]
) -> None:
    old, new = (plant.result(plant.row("ours", steady(100.0)), date=f"2026-01-0{day}T00:00:00+00:00", commit=f"c{day}",
                             changed=day == 2) for day in (1, 2))  # fmt: skip
    short = plant.result(plant.row("ours", steady(100.0)), short=True, date="2026-01-03T00:00:00+00:00", commit="c3")
    _, page = make(new, old, short, names=("new.json", "old.json", "short.json"))
    assert "commit c2 with uncommitted changes" in page and page.count("## a processor") == 1
    older = page.split("## Older results")[1]
    assert "results/cpu-a/old.json" in older and "commit c1," in older and "c3" not in page


def test_the_page_says_whether_a_gpu_has_figures(
    plant: "Planter", steady: Steady, make: Callable[..., tuple[int, str]]
) -> None:
    row = plant.row("ours", steady(100.0))
    _, page = make(plant.result(row))
    assert "**No GPU figure exists yet:" in page and "benchmarks/on_gpu.sh OUT" in page
    _, page = make(plant.result(row, kind="cuda", device="NVIDIA H200", capability=90), device="cuda-nvidia-h200")
    assert "No GPU figure" not in page and page.index("## NVIDIA H200") < page.index("## a processor")


def test_curves_are_drawn(
    plant: "Planter", steady: Steady, make: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    rows = [plant.row(way, steady(factor * at), level="recipes", subject="sft_step", case=f"{at} tokens", at=float(at),
                      axis="tokens") for at in (64, 128) for way, factor in (("ours", 1), ("stock", 2))]  # fmt: skip
    _, page = make(plant.result(*rows))
    assert "results/plots/cpu-a-scaling.png" in page and (tmp_path / "results/plots/cpu-a-scaling.png").exists()
    _, page = make(plant.result(*rows[:2]))
    assert "scaling.png" not in page, "one place is no curve"


def test_an_interval_covers_the_ratio_and_few_runs_prove_nothing(steady: Steady) -> None:
    found = ratio(steady(300.0)[::-1], steady(100.0))
    assert found.low <= 3.0 <= found.high and found.low > 2.9 and found.standing == "faster"
    assert ratio((300.0, 300.0), (100.0, 100.0)).standing == "level"
    assert ratio((1.0, 2.0, 9.0), (1.5, 2.0, 3.0)).standing == "level"


def test_the_ceiling_of_another_dtype_is_not_used(plant: "Planter", steady: Steady) -> None:
    ceilings = plant.result().ceilings
    counted: dict[str, Any] = {"bytes": 1e3, "flops": 1e7}
    assert ceiling_share(plant.row("ours", steady(200.0), **counted), ceilings) == pytest.approx(0.5, rel=0.02)
    assert ceiling_share(plant.row("ours", steady(200.0), dtype="float64", **counted), ceilings) is None
    assert ceiling_share(plant.row("ours", steady(200.0)), ceilings) is None


def target(**changes: object) -> Target:
    fixed = {"level": "kernels", "subject": "giou", "case": "* pairs", "direction": "forward", "kind": "cpu",
             "must": 2.0, "source": "a test", "against": "SciPy*"}  # fmt: skip
    return Target(**{**fixed, **changes})  # type: ignore[arg-type]


def test_targets_are_held_against_the_least_favourable_comparison(plant: "Planter", steady: Steady) -> None:
    rows = [
        row
        for case, best in (("7 pairs", 300.0), ("9 pairs", 150.0), ("7 boxes", 20.0))
        for row in (
            plant.row("ours", steady(100.0), case=case),
            plant.row("SciPy, slow", steady(900.0), case=case),
            plant.row("SciPy", steady(best), case=case),
        )
    ]
    found = judge(target(), contests(rows), {})
    assert (found.verdict, found.other, found.measured, found.meant) == ("missed", "SciPy", 2, 2)
    assert found.contest is not None and found.contest.name == "giou, 9 pairs, forward"
    assert judge(target(must=1.4), contests(rows), {}).verdict == "met"
    assert judge(target(against="FA3"), contests(rows), {}).verdict == "not measured yet"
    assert judge(target(subject="gious"), contests(rows), {}).verdict == "not measured yet"
    latency = target(against="", measure="us", must=150.0)
    assert judge(latency, contests(rows), {}).verdict == "met"
    wrong = [plant.row("ours", status="wrong", reason="off"), plant.row("SciPy", steady(500.0))]
    found = judge(target(), contests(wrong), {})
    assert found.verdict == "not measured yet" and "ours has no figure" in found.text


def test_a_prediction_stands_beside_its_target_and_is_judged_once_measured(plant: "Planter", steady: Steady) -> None:
    rows = contests([plant.row("ours", steady(100.0)), plant.row("SciPy", steady(150.0))])
    said = {}
    for low, high in ((1.2, 1.4), (1.4, 1.6), (1.7, 1.7)):
        one = target(predicted=Prediction(low, high, "2026-11-24", "a note"))
        assert Judgement(one).prediction.endswith("(2026-11-24), a note"), "nothing is measured yet"
        said[low] = judge(one, rows, {}).prediction
    assert said[1.2] == "predicted 1.2x to 1.4x (2026-11-24), a note; measured above what was predicted"
    assert said[1.4].endswith("measured as predicted") and said[1.7].startswith("predicted 1.7x (")
    assert said[1.7].endswith("measured below what was predicted")
    assert judge(target(), rows, {}).prediction == ""
    for low, high, day in ((2.0, 1.0, "2026-11-24"), (1.0, 2.0, "soon")):
        with pytest.raises(ConfigError, match="prediction"):
            Prediction(low, high, day)


def test_a_target_names_whom_to_beat() -> None:
    with pytest.raises(ConfigError, match="a way for ratio"):
        target(against="")
    with pytest.raises(ConfigError, match="or none"):
        target(measure="share")


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_target_speaks_of_a_comparison_of_the_suite(kind: str) -> None:
    """A renamed case or way would leave its target unmeasured for ever."""
    device = torch.device(kind)
    listed = [found for file in (bench_kernels, bench_modules, bench_recipes)
              for found in file.comparisons(device, short=False)]  # fmt: skip
    wanted = [one for one in targets.read() if one.kind == kind]
    assert wanted
    for one in wanted:
        ways = {
            way.name
            for comparison in listed
            for direction in comparison.directions
            if one.speaks_of(comparison.level, comparison.subject, comparison.case, direction)
            for way in comparison.ways
        }
        assert ways, f"no comparison: {one}"
        assert not one.against or any(one.names(way) for way in ways), f"no such way: {one}"


def test_the_static_part_counts_the_page_of_the_kernels() -> None:
    section = """### As compiled

| op | kernel | configuration | sm_80: registers / stack B / shared KB | sm_90: registers / stack B / shared KB | x |
|---|---|---|---|---|---|
| `a` | `f` | x | 40 / 0 / 4.0 | 50 / 8 / 5.0 | 3 |
| `a` | `g` | x |  | 60 / 16 / 2.0 | 4 |
"""
    assert static_part.compiled(section).splitlines()[-1] == "| `a` | 2 | 40 / 0 / 4.0 | 60 / 24 / 5.0 | 7 |"


def test_the_committed_page_is_that_of_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--check"]) == 0, capsys.readouterr().err
    page = report.PAGE.read_text(encoding="utf-8")
    links = re.findall(r"\]\((results/[^)]+|\.\./[^)#]+)", page)
    assert links
    for link in links:
        assert (report.HERE / link).exists(), link

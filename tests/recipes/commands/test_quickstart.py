"""The quickstart's machinery, at a size that learns nothing: every file is written, and one seed gives one result."""

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from medmo_core.data.records.sample import ImageRef, Sample
from medmo_core.models.medmo import MedMO
from medmo_recipes.commands import quickstart, three_stages
from medmo_recipes.commands.time_left import Whole
from medmo_recipes.configs import CONFIGS
from medmo_recipes.evaluation.ask import Asking
from medmo_recipes.evaluation.results import Evaluation
from medmo_recipes.evaluation.scores import Prediction, Score
from medmo_recipes.pages import quickstart_page
from medmo_recipes.pages.study_summary import SUMMARY, StudySummary, summary_for
from medmo_recipes.reinforcement.sharpening import SampledRewards
from medmo_recipes.settings.run_config import ConfigError
from medmo_recipes.training.model.kit import load_kit

STAGES = ("random", "align", "instruct", "reinforce")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "first"
    assert quickstart.main(["--fast", "--out", str(out)]) == 0
    return out


def test_metrics_follow_the_schema(folder: Path) -> None:
    values = json.loads((folder / "metrics.json").read_text())
    assert tuple(values["stages"]) == STAGES
    for metrics in values["stages"].values():
        for name in ("vqa_accuracy", "grounding_iou", "grounding_f1", "report_fact_f1", "retrieval_recall1"):
            assert {"value", "low", "high", "baseline", "n"} <= set(metrics[name])
            assert 0 <= metrics[name]["value"] <= 1 and metrics[name]["n"] > 0
        assert {"grounding_iou_full", "vqa_accuracy_full", "grounding_iou_shuffled"} <= set(metrics)
        assert {"grounding_denied", "grounding_invented"} <= set(metrics)
    assert set(values["sampled_box_reward_of_instruct"]) == {"1", "0.7", "0.5", "0.3"}
    assert "research use only" in values["notice"]
    assert len(values["verdicts"]) == 5


def test_the_report_shows_everything(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    for text in ("Research use only", "fixed random crops", "full slices", "shuffled", "sharpening", "this scan only"):
        assert text in html
    for text in ("Structure by structure", "said nothing", "worst third", "python -m medmo_recipes.instruct", "slices"):
        assert text in html
    for link in re.findall(r'href="([^"]+)"', html):
        assert (folder / link).exists(), link
    assert "nan" not in re.sub(r"base64,[^\"]+", "", html)
    assert html.count("data:image/png;base64,") > 1
    assert (folder / "held_out.png").read_bytes()[:4] == b"\x89PNG"


def test_the_checkpoint_is_official(folder: Path) -> None:
    final = folder / "reinforce/final"
    assert json.loads((final / "config.json").read_text())["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert sum(p.numel() for p in MedMO.from_pretrained(final).parameters()) > 1000


def test_one_seed_gives_one_result(folder: Path, tmp_path: Path) -> None:
    outcome = three_stages.run(tmp_path / "again", size="debug")
    suites = {stage: len(evaluation.predictions) for stage, evaluation in outcome.evaluations.items()}
    assert set(suites.values()) == {three_stages.NUM_SUITES}, "the progress of an evaluation counts all its parts"
    first, second = (json.loads((f / "metrics.json").read_text()) for f in (folder, tmp_path / "again"))
    for costs in ("seconds", "cpu_seconds"):
        parts = first.pop(costs), second.pop(costs)
        assert set(parts[0]) == set(parts[1]) == set(three_stages.COSTS) and sum(parts[0].values()) > 0
    assert first == second


def test_progress_counts_parts_that_are_asked_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, lines = Whole({"evaluate random": 100.0}), list[str]()

    def evaluate(*_: object, asking: Asking, **__: object) -> Evaluation:
        for done in (16, 32):
            for part in range(three_stages.NUM_SUITES):
                asking.on_progress(str(part), done, 32)
                lines.append(whole.line().split(" done")[0])
        return evaluation([0.5], 0.1, [0.2])

    monkeypatch.setattr(three_stages, "evaluate_embedded", evaluate)
    kit = load_kit(CONFIGS["debug_instruct"](), "cpu")
    with whole.part("evaluate random"):
        three_stages.measure(quickstart_page.Outcome(), "random", kit, "debug", whole, three_stages.LAYOUTS["debug"])
    assert lines[:2] == ["6%", "12%"] and lines[7:9] == ["50%", "56%"] and lines[-1] == "100%"


def test_earlier_work_is_not_overwritten(folder: Path) -> None:
    before = (folder / "metrics.json").read_bytes()
    with pytest.raises(ConfigError, match="already holds a quickstart"):
        three_stages.run(folder, size="debug")
    assert (folder / "metrics.json").read_bytes() == before


def score(value: float, gain_low: float) -> Score:
    interval = {"low": value - 0.1, "high": value + 0.1, "gain": value - 0.2, "gain_low": gain_low, "gain_high": 1.0}
    return Score(value, n=9, num_images=3, num_scans=2, baseline=0.2, **interval)


ALIKE = 3  # times that every figure comes: an interval needs images


def answers(ious: list[float]) -> list[Prediction]:
    scores = [{"grounding_iou": iou} for iou in ious for _ in range(ALIKE)]
    return [Prediction(f"s{i}", "grounding", "", "", "", found, image=str(i)) for i, found in enumerate(scores)]


def evaluation(ious: list[float], gain_low: float, shuffled: list[float]) -> Evaluation:
    metrics = {"vqa_accuracy": score(0.6, gain_low), "grounding_iou": score(fmean(ious), gain_low)}
    metrics["grounding_iou_shuffled"] = score(fmean(shuffled), 0.0)
    return Evaluation(metrics, {"grounding": answers(ious), "grounding_shuffled": answers(shuffled)})


def sampled(rewards: dict[float, list[float]]) -> SampledRewards:
    rewards = {temperature: values * ALIKE for temperature, values in rewards.items()}
    count = len(next(iter(rewards.values())))
    samples = [Sample(f"s{i}", "grounding", (ImageRef(f"{i}.png"),)) for i in range(count)]
    return SampledRewards(samples, rewards)


def test_verdicts_follow_the_figures() -> None:
    better, worse = evaluation([0.4, 0.5], 0.1, [0.2, 0.2]), evaluation([0.2, 0.3], 0.1, [0.2, 0.2])
    good = quickstart_page.Outcome({"instruct": evaluation([0.3, 0.4], 0.05, [0.2, 0.2]), "reinforce": better})
    bad = quickstart_page.Outcome({"instruct": evaluation([0.3, 0.4], -0.05, [0.9, 0.9]), "reinforce": worse})
    for outcome in (good, bad):
        outcome.sampled = sampled({1.0: [0.1, 0.1], 0.3: [0.2, 0.2]})
        outcome.sampled_after = sampled({1.0: [0.3, 0.3] if outcome is good else [0.15, 0.15]})
    assert [v.holds for v in quickstart_page.verdicts(good)] == [True] * 5
    assert [v.holds for v in quickstart_page.verdicts(bad)] == [False] * 5
    assert "sharpening" in quickstart_page.verdicts(bad)[-1].measured


@pytest.mark.parametrize(
    ("real", "shuffled", "holds"),
    [
        ([0.5, 0.6, 0.7], [0.2, 0.1, 0.3], True),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], False),  # a model that scores nowhere falls nowhere
        ([0.3, 0.3, 0.3], [0.3, 0.3, 0.3], False),
        ([0.9, 0.1, 0.2], [0.1, 0.3, 0.2], False),  # falls in the mean, not in the interval
        ([0.9, 0.9, 0.9], [0.7, 0.7, 0.7], False),  # falls, and stays above the constant box of 0.2
        ([0.5], [0.1], False),  # few images say nothing
    ],
)
def test_the_control_must_fall_and_reach_the_constant_box(
    real: list[float], shuffled: list[float], holds: bool
) -> None:
    outcome = quickstart_page.Outcome({"instruct": evaluation(real, 0.1, shuffled)})
    verdict = next(v for v in quickstart_page.verdicts(outcome) if "shuffled" in v.claim)
    assert verdict.holds is holds and "nan" not in verdict.measured


@pytest.mark.parametrize(("after", "holds"), [([0.4, 0.5, 0.6], True), ([0.9, 0.2, 0.2], False), ([0.3] * 3, False)])
def test_reinforce_is_above_instruct_only_by_its_interval(after: list[float], holds: bool) -> None:
    before = evaluation([0.3, 0.3, 0.3], 0.1, [0.1] * 3)
    outcome = quickstart_page.Outcome({"instruct": before, "reinforce": evaluation(after, 0.1, [0.1] * 3)})
    verdict = next(v for v in quickstart_page.verdicts(outcome) if "above instruct's" in v.claim)
    assert verdict.holds is holds


@pytest.mark.parametrize(
    ("after", "holds", "word"),
    [
        ([0.5, 0.6, 0.7, 0.6], True, "more than sharpening"),
        ([0.9, 0.1, 0.1, 0.4], False, "no gain to be sure of"),  # above every mean, not surely
        ([0.3, 0.3, 0.4, 0.3], False, "sharpening"),  # surely above T = 1 alone
        ([0.1, 0.2, 0.1, 0.2], False, "no gain to be sure of"),
    ],
)
def test_more_than_sharpening_is_said_by_the_paired_interval(after: list[float], holds: bool, word: str) -> None:
    outcome = quickstart_page.Outcome(dict.fromkeys(("instruct", "reinforce"), evaluation([0.3], 0.1, [0.1])))
    outcome.sampled = sampled({1.0: [0.1, 0.2, 0.1, 0.2], 0.3: [0.4, 0.3, 0.4, 0.3]})
    outcome.sampled_after = sampled({1.0: after})
    verdict = quickstart_page.verdicts(outcome)[-1]
    assert verdict.holds is holds and verdict.measured.endswith(f": {word}")


def test_the_sampled_reward_of_one_slice_is_not_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ALIKE", 1)
    outcome = quickstart_page.Outcome(dict.fromkeys(("instruct", "reinforce"), evaluation([0.3], 0.1, [0.1])))
    outcome.sampled, outcome.sampled_after = sampled({1.0: [0.1]}), sampled({1.0: [0.9]})
    verdict = quickstart_page.verdicts(outcome)[-1]
    said = "over its best +0.800 (fewer than 5 images: no interval), 1 prompt about 1 slice, paired"
    assert not verdict.holds and said in verdict.measured


def test_one_scan_is_no_scans() -> None:
    one = replace(score(0.5, 0.1), num_scans=1, low=None, high=None)
    outcome = quickstart_page.Outcome({"random": Evaluation({"vqa_accuracy": one})})
    (row,) = quickstart_page.score_table(outcome, "", "title").rows
    assert "this scan only" in row[0].detail and row[1].detail == ""


def test_a_layout_is_that_of_every_stage() -> None:
    config = three_stages.stage_configs(Path("out"), "tiny", 7)["align"]
    own = three_stages.command_line("align", "tiny", config, three_stages.LAYOUTS["tiny"])
    assert own.startswith("torchrun --standalone --nproc-per-node=2 -m medmo_recipes.align --config tiny_align ")
    assert " train.num_threads=1 " in own and own.endswith("train.seed=7")
    other = three_stages.command_line("align", "tiny", config, three_stages.Layout(1, 2))
    assert other.startswith("python -m medmo_recipes.align ") and " train.num_threads=2 " in other


def test_a_recipe_is_named_by_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, debug = three_stages.recipe_digest("tiny"), three_stages.recipe_digest("debug")
    assert re.fullmatch("[0-9a-f]{12}", tiny) and tiny != debug
    changed = CONFIGS["tiny_instruct"]().change(optim={"lr": 0.123})
    monkeypatch.setitem(CONFIGS, "tiny_instruct", lambda: changed)
    assert three_stages.recipe_digest("tiny") != tiny and three_stages.recipe_digest("debug") == debug


def test_only_the_study_of_this_recipe_is_told(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    assert summary_for("abc", path) is None
    study = {"recipe": "abc", "num_runs": 10, "held": {"pigs fly": 9}, "ranges": {"instruct": {"iou": [0.25, 0.5]}}}
    path.write_text(json.dumps(study))
    found = summary_for("abc", path)
    assert found is not None and summary_for("abd", path) is None
    assert found.told("pigs fly") == "held in 9 of 10 runs of the study" and found.told("cows fly") == ""
    assert found.range_of("instruct", "iou") == "study: 0.250 to 0.500"
    assert found.range_of("align", "iou") == found.range_of("instruct", "f1") == ""
    assert SUMMARY.parent == Path(quickstart_page.__file__).parent


def test_verdicts_and_figures_stand_beside_those_of_the_study() -> None:
    outcome = quickstart_page.Outcome({"instruct": evaluation([0.3, 0.4], 0.05, [0.2, 0.2])})
    alone = quickstart_page.format_verdicts(outcome)
    (_, row) = quickstart_page.score_table(outcome, "", "title").rows
    assert "study" not in alone and row[1].detail == "[0.250, 0.450]"
    claim = "After instruct, grounding beats the best constant box per label"
    outcome.study = StudySummary("abc", 10, {claim: 9}, {"instruct": {"grounding_iou": (0.25, 0.5)}})
    lines = quickstart_page.format_verdicts(outcome).splitlines()
    where = lines.index(f"[yes] {claim}")
    assert lines[where + 2] == "      held in 9 of 10 runs of the study"
    assert [line for line in lines if "study" not in line] == alone.splitlines()
    table = quickstart_page.score_table(outcome, "", "title")
    assert table.rows[1][1].detail == "[0.250, 0.450]\nstudy: 0.250 to 0.500"
    assert table.note.endswith("Study: lowest and highest of 10 runs of this recipe.")
    assert "Study" not in quickstart_page.score_table(outcome, "_shuffled", "title").note

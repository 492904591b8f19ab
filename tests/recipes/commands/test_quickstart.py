"""The quickstart's machinery, at a size that learns nothing: every file is written, and one seed gives one result."""

import json
from pathlib import Path

import pytest

from medmo_core.models.medmo import MedMO
from medmo_recipes.commands import quickstart, three_stages
from medmo_recipes.evaluation.results import Evaluation
from medmo_recipes.evaluation.scores import Prediction, Score
from medmo_recipes.pages import quickstart_page
from medmo_recipes.settings.run_config import ConfigError

STAGES = ("random", "align", "instruct", "reinforce")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "first"
    assert quickstart.main(["--size", "debug", "--out", str(out)]) == 0
    return out


def test_metrics_follow_the_schema(folder: Path) -> None:
    values = json.loads((folder / "metrics.json").read_text())
    assert tuple(values["stages"]) == STAGES
    for metrics in values["stages"].values():
        for name in ("vqa_accuracy", "grounding_iou", "grounding_f1", "report_fact_f1", "retrieval_recall1"):
            assert {"value", "low", "high", "baseline", "n"} <= set(metrics[name])
            assert 0 <= metrics[name]["value"] <= 1 and metrics[name]["n"] > 0
        assert {"grounding_iou_full", "vqa_accuracy_full", "grounding_iou_shuffled"} <= set(metrics)
    assert set(values["sampled_box_reward_of_instruct"]) == {"1", "0.7", "0.5", "0.3"}
    assert "research use only" in values["notice"]
    assert len(values["verdicts"]) == 5


def test_the_report_shows_everything(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    for text in ("Research use only", "fixed random crops", "full slices", "shuffled", "sharpening", "scans only"):
        assert text in html
    assert html.count("data:image/png;base64,") > 1
    assert (folder / "held_out.png").read_bytes()[:4] == b"\x89PNG"


def test_the_checkpoint_is_official(folder: Path) -> None:
    final = folder / "reinforce/final"
    assert json.loads((final / "config.json").read_text())["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert sum(p.numel() for p in MedMO.from_pretrained(final).parameters()) > 1000


def test_one_seed_gives_one_result(folder: Path, tmp_path: Path) -> None:
    three_stages.run(tmp_path / "again", size="debug")
    first, second = (json.loads((f / "metrics.json").read_text()) for f in (folder, tmp_path / "again"))
    assert first.pop("seconds").keys() == second.pop("seconds").keys()
    assert first == second


def test_earlier_work_is_not_overwritten(folder: Path) -> None:
    before = (folder / "metrics.json").read_bytes()
    with pytest.raises(ConfigError, match="already holds a quickstart"):
        three_stages.run(folder, size="debug")
    assert (folder / "metrics.json").read_bytes() == before


def score(value: float, gain_low: float) -> Score:
    interval = {"low": value - 0.1, "high": value + 0.1, "gain": value - 0.2, "gain_low": gain_low, "gain_high": 1.0}
    return Score(value, n=9, num_images=3, num_scans=2, baseline=0.2, **interval)


def evaluation(ious: list[float], gain_low: float, shuffled: float) -> Evaluation:
    mean = sum(ious) / len(ious)
    metrics = {"vqa_accuracy": score(0.6, gain_low), "grounding_iou": score(mean, gain_low)}
    metrics["grounding_iou_shuffled"] = score(shuffled, 0.0)
    predictions = [
        Prediction(f"s{i}", "grounding", "", "", "", {"grounding_iou": iou}, image=str(i)) for i, iou in enumerate(ious)
    ]
    return Evaluation(metrics, {"grounding": predictions})


def test_verdicts_follow_the_figures() -> None:
    better, worse = evaluation([0.4, 0.5], 0.1, 0.2), evaluation([0.2, 0.3], 0.1, 0.2)
    good = quickstart_page.Outcome({"instruct": evaluation([0.3, 0.4], 0.05, 0.2), "reinforce": better})
    bad = quickstart_page.Outcome({"instruct": evaluation([0.3, 0.4], -0.05, 0.9), "reinforce": worse})
    for outcome in (good, bad):
        outcome.sampled = {1.0: 0.1, 0.3: 0.2}
        outcome.sampled_after = 0.3 if outcome is good else 0.15
    assert [v.holds for v in quickstart_page.verdicts(good)] == [True] * 5
    assert [v.holds for v in quickstart_page.verdicts(bad)] == [False] * 5
    assert "sharpening" in quickstart_page.verdicts(bad)[-1].measured

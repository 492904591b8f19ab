"""The comparison of box rewards: it runs, goes on where it stopped, and its committed page is that of its figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies.box_rewards import __main__ as compare
from benchmarks.studies.box_rewards import one_run
from benchmarks.studies.box_rewards.asking import metrics_of
from benchmarks.studies.box_rewards.plan import FIGURES, PLANS, read_plan, stored_rounds
from medmo_core.metrics import paired_interval
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.model.kit import load_kit

QUESTIONS = {
    "one box": {"grounding": 4, "absent": 4, "vqa": 4, "sampled": 2},
    "targets": {"find_all": 10, "find_none": 6, "count": 4, "judged": 12},
}


@pytest.fixture(params=list(QUESTIONS))
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two arms, two seeds, one step of the debug model."""
    values = {
        "about": "a test",
        "config": "debug_reinforce",
        "settings": ["rollout.max_new_tokens=4"],
        "arms": {"box": {"box": 1.0, "format": 0.2}, "no box term": {"format": 1.0}},
        "seeds": [1, 2],
        "steps": 1,
        "questions": QUESTIONS[request.param],
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_every_arm_is_trained_measured_and_told(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = load_kit(CONFIGS["debug_reinforce"](), "cpu")
    kit.model.save_pretrained(tmp_path / "start", tokenizer=kit.processor.tokenizer, profile=kit.profile)
    words = ["--init", str(tmp_path / "start"), "--plan", str(plan), "--out", str(tmp_path / "runs"), "--jobs", "1"]
    figures = tmp_path / "figures/plan.json"
    compare.main([*words, "--figures", str(figures)])
    told = json.loads(figures.read_text())
    metrics = metrics_of(read_plan(plan).questions)
    assert list(told["arms"]) == ["instruct", "box", "no box term"]
    assert [len(told["arms"]["box"][key]["seeds"]) for key in metrics] == [2] * len(metrics)
    assert set(told["against"]) == {"instruct", "no box term"}
    said = capsys.readouterr().out
    assert "| no box term |" in said
    if "answers" in told:
        assert "| ribs |" in said and "| as it is | 0.9" in said
        for key, stored in told["answers"].items():
            pair = (stored["arms"]["box"], stored["arms"]["no box term"])
            low, high = paired_interval(*pair, stored["images"]) or (None, None)
            row = told["against"]["no box term"][key]
            assert (row["low"], row["high"]) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))

    def untouched(*_: Any) -> None:
        raise AssertionError("a finished arm was trained again")

    monkeypatch.setattr(one_run.reinforce, "run", untouched)
    found = one_run.run_one(read_plan(plan), "box", 1, tmp_path / "start", tmp_path / "runs")
    assert found == json.loads((tmp_path / "runs/box-1/measured.json").read_text())


def test_the_committed_page_is_that_of_the_committed_figures() -> None:
    rounds = stored_rounds(FIGURES)
    assert compare.PAGE.read_text(encoding="utf-8") == compare.page(rounds)
    plans = {name: json.loads((PLANS / f"{name}.json").read_text(encoding="utf-8")) for name in rounds}
    assert {name: figures["plan"] for name, figures in rounds.items()} == plans

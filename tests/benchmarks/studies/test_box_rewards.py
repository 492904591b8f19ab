"""The comparison of box rewards: it runs, goes on where it stopped, and its committed page is that of its figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import box_rewards as compare
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.model.kit import load_kit


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Two arms, two seeds, one step of the debug model."""
    values = {
        "about": "a test",
        "config": "debug_reinforce",
        "settings": ["rollout.max_new_tokens=4"],
        "arms": {"box": {"box": 1.0, "format": 0.2}, "no box term": {"format": 1.0}},
        "seeds": [1, 2],
        "steps": 1,
        "questions": {"grounding": 4, "absent": 4, "vqa": 4, "sampled": 2},
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
    assert list(told["arms"]) == ["instruct", "box", "no box term"]
    assert [len(told["arms"]["box"][key]["seeds"]) for key in compare.METRICS] == [2, 2, 2, 2]
    assert set(told["against"]) == {"instruct", "no box term"}
    assert "| no box term |" in capsys.readouterr().out

    def untouched(*_: Any) -> None:
        raise AssertionError("a finished arm was trained again")

    monkeypatch.setattr(compare.reinforce, "run", untouched)
    arguments = (compare.StudyPlan(**json.loads(plan.read_text())), "box", 1, tmp_path / "start", tmp_path / "runs")
    assert compare.run_one(*arguments) == json.loads((tmp_path / "runs/box-1/measured.json").read_text())


def test_the_committed_page_is_that_of_the_committed_figures() -> None:
    rounds = compare.stored_rounds(compare.FIGURES)
    assert compare.PAGE.read_text(encoding="utf-8") == compare.page(rounds)
    plans = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(compare.PLANS.glob("*.json"))}
    assert {name: figures["plan"] for name, figures in rounds.items()} == plans
